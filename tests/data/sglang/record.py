"""Writes what SGLang's own classes publish: its radix cache, fed with requests, and its ZMQ publisher.

    python record.py <version> <folder with the unpacked wheel> <output folder>

Needs msgspec, pyzmq, pydantic and numpy. `kv_events.py`, `radix_cache.py` and what they say about pages, hashes and
events run unmodified; torch is a few lines over numpy, the compiled page hash (0.5.13 and later) is hashlib, and
everything else that those files import is a mock.
"""

import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import itertools
import json
import sys
import time
import types
from array import array
from unittest.mock import MagicMock

import msgspec
import numpy
import zmq

VERSION, WHEEL, OUT = sys.argv[1:4]
REAL = {"sglang.srt.disaggregation.kv_events"} | {
    f"sglang.srt.mem_cache.{name}"
    for name in ("radix_cache", "base_prefix_cache", "cache_init_params", "evict_policy", "events", "utils",
                 "hicache_storage")
}


class Tensor(numpy.ndarray):
    def clone(self):
        return self.copy()


def tensor(values, dtype=None, device=None):
    return numpy.array(values, dtype=numpy.int64).view(Tensor)


def native_hash(key, prior, page_size=None):
    """`get_native_hash`: a digest per page, over the one before it and the tokens as u32, little endian."""
    units = list(key)
    digests = []
    size = page_size or max(len(units), 1)
    for start in range(0, len(units), size):
        digest = hashlib.sha256(prior or b"")
        for unit in units[start : start + size]:
            for token in unit if isinstance(unit, tuple) else (unit,):
                digest.update(int(token).to_bytes(4, "little"))
        prior = digest.digest()
        digests.append(digest.hexdigest())
    return digests if page_size else digests[-1]


class Mocks(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        if name in REAL:
            file = f"{WHEEL}/{name.replace('.', '/')}.py"
            return importlib.util.spec_from_file_location(name, file)
        if name.split(".")[0] in ("sglang", "torch", "triton", "sgl_kernel"):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)

        def attribute(name):
            real = f"{spec.name}.{name}"
            return importlib.import_module(real) if real in REAL else MagicMock(name=name)

        module.__getattr__ = attribute
        return module

    def exec_module(self, module):
        if module.__name__ == "torch":
            module.Tensor, module.tensor, module.int64 = Tensor, tensor, numpy.int64
            module.empty = lambda size, **_: tensor([0] * (size if isinstance(size, int) else size[0]))
            module.cat = lambda parts: numpy.concatenate(parts).view(Tensor)
            module.device = type("device", (), {"__init__": lambda self, *_: None})
        if module.__name__.endswith("native_hash"):
            module.get_native_hash = native_hash


sys.meta_path.insert(0, Mocks())
from sglang.srt.disaggregation import kv_events  # noqa: E402
from sglang.srt.mem_cache import radix_cache  # noqa: E402
from sglang.srt.mem_cache.radix_cache import RadixCache  # noqa: E402

IS_KEYED = hasattr(radix_cache, "RadixKey")


def accepts(function, name):
    return name in inspect.signature(function).parameters


class Engine:
    """One radix cache with its publisher, and who listens."""

    port = 25000

    def __init__(self, name, page_size, rank=0, is_eagle=False):
        self.name, self.page_size, self.is_eagle = name, page_size, is_eagle
        self.steps = []
        allocator = MagicMock()
        allocator.device = "cpu"
        if IS_KEYED and hasattr(RadixCache, "create_simulated"):
            self.cache = RadixCache.create_simulated(
                mock_allocator=allocator, page_size=page_size, enable_kv_cache_events=True
            )
            self.cache.is_eagle = is_eagle
            self.names = getattr(getattr(self.cache, "kv_events", None), "lora_names", None)
        else:
            self.cache = RadixCache(None, allocator, page_size=page_size, enable_kv_cache_events=True)
        context = zmq.Context.instance()
        self.sub, self.dealer = context.socket(zmq.SUB), context.socket(zmq.DEALER)
        Engine.port += 10
        endpoints = {"endpoint": f"tcp://*:{Engine.port}", "replay_endpoint": f"tcp://*:{Engine.port + 5}"}
        if accepts(kv_events.ZmqEventPublisher.__init__, "attn_dp_rank"):
            endpoints["attn_dp_rank"] = rank
        else:
            rank = 0
        self.publisher = kv_events.ZmqEventPublisher(topic=f"kv@10.0.0.7:30000@{name}", **endpoints)
        self.sub.setsockopt(zmq.SUBSCRIBE, b"")
        self.sub.connect(f"tcp://127.0.0.1:{Engine.port + rank}")
        self.dealer.connect(f"tcp://127.0.0.1:{Engine.port + 5 + rank}")
        time.sleep(0.5)

    def key(self, tokens, salt=None, extra_key=None):
        if not IS_KEYED:
            return list(tokens)
        arguments = {"extra_key": extra_key} if extra_key else {}
        if salt and accepts(radix_cache.RadixKey.__init__, "cache_salt"):
            arguments["cache_salt"] = salt
        elif salt:  # As Req does it in these versions.
            arguments["extra_key"] = (extra_key or "") + salt
        is_array = "array" in vars(radix_cache)
        return radix_cache.RadixKey(array("q", tokens) if is_array else list(tokens), **arguments)

    def cached_tokens(self, tokens, salt, extra_key):
        """As Req.init_next_round_input asks: all but the last token."""
        key = self.key(tokens[:-1], salt, extra_key)
        if hasattr(radix_cache, "MatchPrefixParams"):
            found = self.cache.match_prefix(radix_cache.MatchPrefixParams(key=key))
        else:
            found = self.cache.match_prefix(key)
        if isinstance(found, tuple) and not hasattr(found, "_fields"):
            return len(found[0])
        return found.device_prefix_len if hasattr(found, "device_prefix_len") else len(found.device_indices)

    def insert(self, tokens, salt, extra_key):
        key, value = self.key(tokens, salt, extra_key), tensor(tokens)
        if hasattr(radix_cache, "InsertParams"):
            self.cache.insert(radix_cache.InsertParams(key=key, value=value))
        else:  # Aligned to pages by the caller in these versions; pairs are one fewer than tokens.
            size = self.page_size
            pages = (len(tokens) - self.is_eagle) // size
            if pages > 0:
                end = pages * size
                self.cache.insert(self.key(tokens[: end + self.is_eagle], salt, extra_key), value[:end])

    def publish(self):
        events = self.cache.kv_events.take() if hasattr(self.cache, "kv_events") else self.cache.take_events()
        if not events:
            return []
        self.publisher.publish(kv_events.KVEventBatch(ts=1795000000.0 + len(self.steps), events=events))
        if not self.sub.poll(5000):
            raise RuntimeError("nothing was published")
        return [[part.hex() for part in self.sub.recv_multipart()]]

    def request(self, prompt, output=(), salt=None, lora=None):
        """A prompt and what was generated; the last generated token has no KV."""
        extra_key = f"{lora:0>32}" if lora else None
        if lora:
            self.names.register(types.SimpleNamespace(lora_id=extra_key, extra_key=extra_key), lora)
        cached = self.cached_tokens(prompt, salt, extra_key)
        self.insert(prompt, salt, extra_key)
        frames = self.publish()
        if len(output) > 1:
            self.insert(list(prompt) + list(output[:-1]), salt, extra_key)
            frames += self.publish()
        step = {"prompt": list(prompt), "cached_tokens": cached, "frames": frames}
        more = {"cache_salt": salt, "lora_name": lora}
        self.steps.append(step | {name: value for name, value in more.items() if value})

    def evict(self, tokens):
        if hasattr(radix_cache, "EvictParams"):
            self.cache.evict(radix_cache.EvictParams(num_tokens=tokens))
        else:
            self.cache.evict(tokens)
        self.steps.append({"evict": tokens, "frames": self.publish()})

    def flush(self):
        self.cache.reset()
        self.steps.append({"flush": True, "frames": self.publish()})

    def replay(self, start):
        self.dealer.send_multipart([b"", start.to_bytes(8, "big")])
        answers = []
        while self.dealer.poll(5000):
            answers.append([part.hex() for part in self.dealer.recv_multipart()])
            if answers[-1][-2] == "ff" * 8:
                return answers
        raise RuntimeError("no end of the replay")

    def end(self):
        answer = {"replay_from": 1, "answers": self.replay(1)}
        self.publisher.shutdown()
        head = {"name": self.name, "version": VERSION, "page_size": self.page_size, "is_eagle": self.is_eagle}
        return [head] + self.steps + [answer]


def conversations(engine, salts=(None,), loras=(None,)):
    """Shared prefixes of several lengths, decoding, a split in the middle of a node, eviction, a flush."""
    size = engine.page_size
    text = [(7919 * at) % 151643 for at in range(1, 16 * size + 3)]
    other = [(104729 * at) % 151643 for at in range(1, 8 * size + 3)]
    for salt, lora in itertools.product(salts, loras):
        engine.request(text[: 6 * size], other[:5], salt=salt, lora=lora)
        engine.request(text[: 6 * size], salt=salt, lora=lora)
        engine.request(text[: 6 * size + 1], salt=salt, lora=lora)
        engine.request(text[: 3 * size] + other[: 3 * size], other[3 * size :], salt=salt, lora=lora)
        engine.request(text[: 12 * size + 1], salt=salt, lora=lora)
        engine.request(text[: 3 * size + 1] + other, salt=salt, lora=lora)
        engine.request(other[: size + 1], salt=salt, lora=lora)
        engine.request(text[: size] + text[size : size + 1], salt=salt, lora=lora)
    engine.evict(4 * size)
    for salt, lora in itertools.product(salts, loras):
        engine.request(text[: 12 * size + 1], salt=salt, lora=lora)
        engine.request(other, salt=salt, lora=lora)
    engine.flush()
    engine.request(text[: 12 * size + 1])
    engine.request(text[: 12 * size])


def shapes():
    """Each event as the version's structs write it; `fields` says what was put in."""
    optional = [
        {}, {"medium": "GPU"}, {"medium": "CPU_PINNED"}, {"medium": "DISK"}, {"medium": "EXTERNAL"},
        {"cache_salt": "tenant-a"}, {"lora_name": "sql"}, {"session_id": "s"},
    ]
    base = {"block_hashes": [-2, 5740354900026072187], "parent_block_hash": -(2**63), "block_size": 2, "lora_id": None}
    lines = []
    for tokens in ([1, 2, 151643, 4], [(1, 2), (2, 151643), (151643, 4), (4, 5)]):
        for more in optional:
            stored = kv_events.BlockStored
            fields = base | {"token_ids": tokens} | more
            arguments = dict(fields)
            if "cache_salt" in more and hasattr(kv_events, "BlockStoredWithMetadata"):
                stored = kv_events.BlockStoredWithMetadata
                arguments["metadata"] = kv_events.BlockStoredMetadata(cache_salt=arguments.pop("cache_salt"))
            if set(arguments) <= set(stored.__struct_fields__):
                lines.append(("BlockStored", fields, stored(**arguments)))
    for more in optional[:5]:
        fields = {"block_hashes": [-1, 3]} | more
        if set(fields) <= set(kv_events.BlockRemoved.__struct_fields__):
            lines.append(("BlockRemoved", fields, kv_events.BlockRemoved(**fields)))
    lines.append(("AllBlocksCleared", {}, kv_events.AllBlocksCleared()))
    for kind, fields, event in lines:
        batch = kv_events.KVEventBatch(ts=1795000000.5, events=[event])
        if "attn_dp_rank" in kv_events.KVEventBatch.__struct_fields__:
            batch.attn_dp_rank = 3
        payload = msgspec.msgpack.Encoder().encode(batch).hex()
        yield {"version": VERSION, "type": kind, "fields": fields, "payload_hex": payload}


def main():
    scenarios = []
    for page_size in (1, 16):
        engine = Engine(f"page{page_size}", page_size, rank=2 if page_size == 16 else 0)
        conversations(engine)
        scenarios.append(engine)
    if hasattr(radix_cache.RadixCache, "create_simulated"):
        engine = Engine("salted", 16)
        conversations(engine, salts=("tenant-a", None, "tenant-b"))
        scenarios.append(engine)
        if getattr(engine, "names", None) is not None:
            engine = Engine("adapters", 16)
            conversations(engine, loras=("sql", None, "poems"))
            scenarios.append(engine)
        for page_size in (1, 16):
            engine = Engine(f"eagle{page_size}", page_size, is_eagle=True)
            conversations(engine)
            scenarios.append(engine)
    with open(f"{OUT}/v{VERSION}.jsonl", "w") as out:
        for engine in scenarios:
            for line in engine.end():
                out.write(json.dumps(line, separators=(",", ":")) + "\n")
    with open(f"{OUT}/shapes-v{VERSION}.jsonl", "w") as out:
        out.writelines(json.dumps(line, separators=(",", ":")) + "\n" for line in shapes())


if __name__ == "__main__":
    main()
