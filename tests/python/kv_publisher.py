"""A small model of a vLLM engine's prefix cache, whose KV events are published over libzmq as vLLM publishes them.

    PYTHONPATH=target/tools/pyzmq python3 tests/python/kv_publisher.py '{"layout": "0.32"}'

Three frames per batch (topic, number, msgpack payload), numbered from 0 per process; the newest batches are kept and
sent again by a ROUTER to who asks `["", first number]`. Layouts, as vLLM's wheels of these versions have them:

    0.23   events are arrays; replayed as ["", number, payload]
    0.25   events are maps;   replayed as ["", number, payload]
    0.32   events are maps;   replayed as ["", topic, number, payload]

What isn't the engine's: the live socket is an XPUB unless asked for otherwise. To a subscriber that is the same, but it
tells when a subscription has been read, so that a test needn't guess.
"""

import hashlib
import json
import random
import struct
import sys
import time

import msgspec
import zmq
from zmq.utils.monitor import recv_monitor_message

from steps import Steps, answer

BLOCK_TOKENS = 16
END = struct.pack(">q", -1)


class Batch(msgspec.Struct, array_like=True):
    ts: float
    events: list
    data_parallel_rank: int = 0


class ArrayStored(msgspec.Struct, array_like=True, tag="BlockStored"):
    block_hashes: list
    parent_block_hash: object
    token_ids: list
    block_size: int
    lora_id: object = None
    medium: object = "GPU"
    lora_name: object = None
    extra_keys: object = None
    group_idx: object = 0


class ArrayRemoved(msgspec.Struct, array_like=True, tag="BlockRemoved"):
    block_hashes: list
    medium: object = "GPU"
    group_idx: object = 0


class ArrayCleared(msgspec.Struct, array_like=True, tag="AllBlocksCleared"):
    pass


class MapStored(msgspec.Struct, omit_defaults=True, tag="BlockStored"):
    block_hashes: list
    parent_block_hash: object
    token_ids: list
    block_size: int
    lora_id: object = None
    medium: object = None
    group_idx: object = None
    kv_cache_spec_kind: object = None


class MapRemoved(msgspec.Struct, omit_defaults=True, tag="BlockRemoved"):
    block_hashes: list
    medium: object = None
    group_idx: object = None


class MapCleared(msgspec.Struct, tag="AllBlocksCleared"):
    pass


class Cache:
    """What the engine holds. Prompts are numbers: the first of their blocks is shared by every seventh."""

    def __init__(self, has_maps):
        self.has_maps = has_maps
        self.copies = {}
        self.lengths = {}
        self.names = {}
        self.must_tell_clear = False

    def tokens(self, prompt, block):
        first = (prompt % 7 if block == 0 else 7 + prompt * 64 + block) * BLOCK_TOKENS
        return list(range(first, first + BLOCK_TOKENS))

    def name(self, prompt, block):
        place = (prompt % 7, 0) if block == 0 else (prompt, block)
        if place not in self.names:
            parent = self.name(prompt, block - 1) if block else None
            text = repr((parent, self.tokens(prompt, block)))
            self.names[place] = int.from_bytes(hashlib.sha256(text.encode()).digest()[-8:], "big")
        return self.names[place]

    def leading(self, prompt):
        held = 0
        while self.name(prompt, held) in self.copies and held < self.lengths.get(prompt, 1):
            held += 1
        return held

    def stored(self, prompt, blocks):
        """The event of blocks at some place of a prompt, all in one."""
        for block in blocks:
            name = self.name(prompt, block)
            self.copies[name] = self.copies.get(name, 0) + 1
            self.lengths[prompt] = max(self.lengths.get(prompt, 0), block + 1)
        hashes = [self.name(prompt, block) for block in blocks]
        parent = self.name(prompt, blocks[0] - 1) if blocks[0] > 0 else None
        tokens = [token for block in blocks for token in self.tokens(prompt, block)]
        if self.has_maps:
            return MapStored(
                hashes, parent, tokens, BLOCK_TOKENS, None, "GPU", 0, "full_attention"
            )
        return ArrayStored(hashes, parent, tokens, BLOCK_TOKENS)

    def store(self, prompt, blocks):
        """A request for the first so many blocks of a prompt; nothing if all of them are held."""
        held = self.leading(prompt)
        return [self.stored(prompt, range(held, blocks))] if held < blocks else []

    def store_copy(self, prompt):
        """One more physical copy of a prompt's last block."""
        held = self.leading(prompt)
        return [self.stored(prompt, [held - 1])] if held else []

    def remove(self, prompt):
        """One copy of a prompt's last block goes; never a block that others follow."""
        held = self.leading(prompt)
        siblings = (other for other in self.lengths if other % 7 == prompt % 7)
        if not held or (held == 1 and any(self.leading(other) > 1 for other in siblings)):
            return []
        name = self.name(prompt, held - 1)
        self.copies[name] -= 1
        if not self.copies[name]:
            del self.copies[name]
        return [MapRemoved([name], "GPU", 0) if self.has_maps else ArrayRemoved([name])]

    def clear(self):
        self.copies.clear()
        self.must_tell_clear = True

    def told(self, events):
        """Events as they are published: a reset is told with the first ones after it."""
        if events and self.must_tell_clear:
            self.must_tell_clear = False
            events = [MapCleared() if self.has_maps else ArrayCleared(), *events]
        return events


class Publisher:
    def __init__(self, options):
        self.options = options
        layout = options.get("layout", "0.32")
        self.has_topic = layout == "0.32"
        self.cache = Cache(has_maps=layout != "0.23")
        self.topic = options.get("topic", "kv@engine@model").encode()
        self.context = zmq.Context()
        self.live = self.context.socket(getattr(zmq, options.get("socket", "XPUB")))
        self.live.set(zmq.LINGER, 0)
        self.live.set(zmq.SNDHWM, options.get("hwm", 100_000))
        if self.live.socket_type == zmq.XPUB:
            self.live.set(zmq.XPUB_VERBOSER, 1)
        if "send_buffer_bytes" in options:
            self.live.set(zmq.SNDBUF, options["send_buffer_bytes"])
        self.protect(options.get("mechanism"))
        if "heartbeat_ms" in options:
            self.live.set(zmq.HEARTBEAT_IVL, options["heartbeat_ms"])
            self.live.set(zmq.HEARTBEAT_TIMEOUT, options["heartbeat_ms"] * 10)
        self.router = self.context.socket(zmq.ROUTER)
        self.router.set(zmq.LINGER, 0)
        self.router.set(zmq.SNDHWM, options.get("router_hwm", 1000))
        for socket in (self.live, self.router):
            socket.set(zmq.IPV6, 1)
        events = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED
        self.monitor = self.router.get_monitor_socket(events)
        self.replayers = self.most_replayers = 0
        self.seq = 0
        self.kept = []
        self.subscribers = self.subscriptions = 0
        self.replays = []
        self.answers = {"mode": "well", "times": 0}
        self.due = []

    def protect(self, mechanism):
        if mechanism == "PLAIN":
            self.live.set(zmq.PLAIN_SERVER, 1)
        elif mechanism == "CURVE":
            self.live.set(zmq.CURVE_SECRETKEY, zmq.curve_keypair()[1])
            self.live.set(zmq.CURVE_SERVER, 1)

    def bind(self):
        ports = []
        for socket, port in ((self.live, "port"), (self.router, "replay_port")):
            address = "tcp://%s:%d" % (self.options.get("host", "127.0.0.1"), self.options.get(port, 0))
            # A killed process's port may take a moment to be free.
            for _ in range(1000):
                try:
                    socket.bind(address)
                    break
                except zmq.ZMQError as error:
                    if error.errno != zmq.EADDRINUSE:
                        raise
                    time.sleep(0.01)
            ports.append(int(socket.get(zmq.LAST_ENDPOINT).rsplit(b":", 1)[1].rstrip(b"\0")))
        return {"port": ports[0], "replay_port": ports[1]}

    def publish(self, events, lose=False):
        events = self.cache.told(events)
        if not events:
            return
        payload = msgspec.msgpack.encode(Batch(time.time(), events))
        batch = (self.seq, payload)
        self.seq += 1
        self.kept.append(batch)
        del self.kept[: -self.options.get("buffer_steps", 10_000)]
        if not lose:
            self.send(batch)

    def send(self, batch):
        self.live.send_multipart([self.topic, struct.pack(">Q", batch[0]), batch[1]])

    def random_steps(self, batches, seed, clears):
        """So many batches of prompts that come, grow, are decoded twice and go, of a cache that is reset or not."""
        choice = random.Random(seed)
        end = self.seq + batches
        while self.seq < end:
            prompt = choice.randrange(40)
            what = choice.random()
            events = []
            if clears and what < 0.01:
                self.cache.clear()
            elif what < 0.1:
                events = self.cache.store_copy(prompt)
            elif what < 0.45:
                events = self.cache.remove(prompt)
            else:
                events = self.cache.store(prompt, choice.randrange(1, 12))
            self.publish(events)
        # What is held is then what was told.
        while self.cache.must_tell_clear:
            self.publish(self.cache.store(0, 3))

    # Steps. What one returns is the answer; None if it waits for something.

    def step(self, do, fields):
        if do == "bind":
            return self.bind()
        if do == "store":
            for prompt in fields["prompts"]:
                events = self.cache.store(prompt, fields.get("blocks", 2))
                self.publish(events, fields.get("lose", False))
        elif do == "remove":
            self.publish(self.cache.remove(fields["prompt"]), fields.get("lose", False))
        elif do == "clear":
            self.cache.clear()
        elif do == "random":
            self.random_steps(fields["batches"], fields["seed"], fields.get("clears", False))
        elif do == "resend":
            kept = dict(self.kept)
            for seq in fields["seqs"]:
                self.send((seq, kept[seq]))
        elif do == "raw":
            self.live.send_multipart([bytes.fromhex(frame) for frame in fields["frames"]])
        elif do == "answers":
            self.answers = fields
        elif do == "held":
            prompts = {prompt: self.cache.leading(prompt) for prompt in self.cache.lengths}
            return {"last_seq": self.seq - 1, "blocks": len(self.cache.copies), "prompts": prompts}
        elif do == "stats":
            return {"replays": self.replays, "most_replayers": self.most_replayers}
        else:
            raise ValueError(do)
        return {"last_seq": self.seq - 1}

    def is_met(self, wait):
        """Whether what a step waits for has come: so many subscribers now, or requests for replay so far."""
        return self.subscribers >= wait.get("subscribers", 0) and len(self.replays) >= wait.get("replays", 0)

    # Sockets.

    def take_subscription(self):
        message = self.live.recv()
        self.subscribers += 1 if message[:1] == b"\1" else -1

    def take_monitor(self):
        event = recv_monitor_message(self.monitor)["event"]
        self.replayers += 1 if event == zmq.EVENT_ACCEPTED else -1
        self.most_replayers = max(self.most_replayers, self.replayers)

    def take_request(self):
        frames = self.router.recv_multipart()
        if len(frames) != 3 or frames[1]:
            return
        start = struct.unpack(">Q", frames[2])[0]
        self.replays.append(start)
        answers = self.answers
        if answers["mode"] != "well" and answers.get("times", 1 << 30) > 0:
            answers["times"] = answers.get("times", 1 << 30) - 1
        else:
            answers = {"mode": "well"}
        if answers["mode"] == "late":
            self.due.append((time.monotonic() + answers["ms"] / 1000, frames[0], start, answers))
        elif answers["mode"] != "never":
            self.replay(frames[0], start, answers)

    def replay(self, asker, start, answers):
        """What is kept, with the fault asked for. A ROUTER drops silently what its queue can't take."""
        mode = answers["mode"]
        topic = [self.topic] if self.has_topic else []
        if mode == "garbage":
            self.router.send_multipart([asker, b"", b"what?"])
            return
        sent = 0
        for seq, payload in self.kept:
            if seq < start + (answers["batches"] if mode == "starts-late" else 0):
                continue
            sent += 1
            if mode == "holes" and sent % answers["every"] == 0:
                continue
            if mode == "lacks" and seq == answers["seq"]:
                continue
            if mode == "breaks-off" and sent > answers["batches"]:
                break
            self.router.send_multipart([asker, b"", *topic, struct.pack(">Q", seq), payload])
        if mode not in ("no-end", "breaks-off"):
            self.router.send_multipart([asker, b"", *topic, END, b""])

    def answer_due(self):
        now = time.monotonic()
        for due in [due for due in self.due if due[0] <= now]:
            self.due.remove(due)
            self.replay(*due[1:])


def main():
    publisher = Publisher(json.loads(sys.argv[1]))
    answer(**(publisher.bind() if publisher.options.get("bind", True) else {}))
    steps, waiting = Steps(), []
    poller = zmq.Poller()
    poller.register(0, zmq.POLLIN)
    poller.register(publisher.router, zmq.POLLIN)
    poller.register(publisher.monitor, zmq.POLLIN)
    if publisher.live.socket_type == zmq.XPUB:
        poller.register(publisher.live, zmq.POLLIN)
    while not steps.has_ended:
        ready = dict(poller.poll(20 if publisher.due else 1000))
        if publisher.live in ready:
            publisher.take_subscription()
        if publisher.monitor in ready:
            publisher.take_monitor()
        if publisher.router in ready:
            publisher.take_request()
        publisher.answer_due()
        if 0 in ready:
            waiting += steps.read()
        while waiting:
            fields = waiting[0]
            if fields["do"] == "await":
                if not publisher.is_met(fields):
                    break
                answer()
            else:
                answer(**publisher.step(fields["do"], fields))
            waiting.pop(0)


main()
