//! Continuous batching without clock and sockets: limits, preemption, chunked prefill, order.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that can't go on fails")]

use std::collections::HashMap;

use proptest::prelude::{Strategy, prop_assert, prop_assert_eq, proptest};
use warmroute_engine_sim::{HashScheme, NewRequest, PrefixCache, Scheduler, StepOutput};

const BLOCK_SIZE: u32 = 4;

fn scheduler(num_gpu_blocks: u32, max_num_seqs: u32, max_num_batched_tokens: u32) -> Scheduler {
    let cache = PrefixCache::new(num_gpu_blocks, BLOCK_SIZE, HashScheme::default(), true);
    Scheduler::new(cache, max_num_seqs, max_num_batched_tokens)
}

fn request(id: u64, prompt: std::ops::Range<u32>, output_tokens: usize) -> NewRequest {
    NewRequest {
        id,
        prompt_token_ids: prompt.collect(),
        output_token_ids: (0..output_tokens as u32).map(|at| 900 + at).collect(),
        cache_salt: None,
        reports_hits: false,
    }
}

fn step(scheduler: &mut Scheduler) -> Vec<StepOutput> {
    scheduler.schedule();
    let mut outputs = Vec::new();
    scheduler.complete(&mut outputs);
    outputs
}

#[test]
fn waiting_requests_start_in_order_of_arrival() {
    let mut scheduler = scheduler(100, 2, 8192);
    for id in 0..5 {
        assert!(scheduler.submit(request(id, 0..10, 2)));
    }
    let mut order = Vec::new();
    while !scheduler.is_idle() {
        assert!(scheduler.stats().running_requests <= 2);
        order.extend(step(&mut scheduler).iter().filter(|output| output.finished).map(|output| output.id));
    }
    assert_eq!(order, [0, 1, 2, 3, 4]);
}

#[test]
fn a_long_prompt_is_computed_in_chunks_while_others_decode() {
    let mut scheduler = scheduler(100, 4, 16);
    assert!(scheduler.submit(request(0, 0..4, 10)));
    assert_eq!(step(&mut scheduler).len(), 1);
    assert!(scheduler.submit(request(1, 100..140, 1)));
    let mut chunks = Vec::new();
    for _ in 0..3 {
        let work = scheduler.schedule();
        assert_eq!(work.decoding_requests, 1);
        chunks.push(work.prefill_tokens);
        let mut outputs = Vec::new();
        scheduler.complete(&mut outputs);
        assert_eq!(outputs[0].id, 0);
        assert_eq!(outputs.len() == 2, chunks.len() == 3);
    }
    assert_eq!(chunks, [15, 15, 10]);
}

#[test]
fn out_of_blocks_the_last_one_admitted_starts_again_and_is_told_its_first_hit() {
    // 6 usable blocks: both prompts fit (4 blocks), both outputs don't.
    let mut scheduler = scheduler(7, 4, 8192);
    assert!(scheduler.submit(request(0, 0..8, 8)));
    assert!(scheduler.submit(request(1, 100..108, 8)));
    let mut tokens: HashMap<u64, Vec<u32>> = HashMap::new();
    while !scheduler.is_idle() {
        for output in step(&mut scheduler) {
            assert_eq!(output.cached_tokens, 0);
            tokens.entry(output.id).or_default().push(output.token_id);
        }
    }
    assert!(scheduler.stats().preemptions > 0);
    let expected: Vec<u32> = (900..908).collect();
    assert!(tokens[&0] == expected && tokens[&1] == expected);
    assert_eq!(scheduler.stats().prompt_tokens, 16);
    assert_eq!(scheduler.cache().pool().free_blocks(), 6);
}

#[test]
fn what_can_never_fit_is_refused() {
    let mut scheduler = scheduler(4, 4, 8192);
    assert!(scheduler.submit(request(0, 0..8, 5)));
    assert!(!scheduler.submit(request(1, 0..8, 6)));
    assert!(!scheduler.submit(request(2, 0..0, 1)));
    assert!(!scheduler.submit(request(3, 0..1, 0)));
}

#[test]
fn an_aborted_request_gives_its_blocks_back() {
    let mut scheduler = scheduler(100, 1, 8192);
    assert!(scheduler.submit(request(0, 0..8, 50)));
    assert!(scheduler.submit(request(1, 0..8, 50)));
    step(&mut scheduler);
    assert!(!scheduler.reset_prefix_cache());
    scheduler.abort(|_| true);
    assert!(scheduler.is_idle());
    assert_eq!(scheduler.cache().pool().free_blocks(), 99);
    assert!(scheduler.reset_prefix_cache());
}

fn workload() -> impl Strategy<Value = Vec<(u32, u32, usize)>> {
    proptest::collection::vec((0..4_u32, 1..30_u32, 1..12_usize), 1..25)
}

proptest! {
    #[test]
    fn every_request_gets_all_its_tokens_whatever_the_limits(
        requests in workload(), blocks in 12..40_u32, seqs in 1..6_u32, budget in 1..40_u32
    ) {
        let mut scheduler = scheduler(blocks, seqs, budget);
        let mut tokens: HashMap<u64, Vec<u32>> = HashMap::new();
        for (id, (family, prompt, output)) in requests.iter().enumerate() {
            prop_assert!(scheduler.submit(request(id as u64, family * 100..family * 100 + prompt, *output)));
            // Requests arrive while others run.
            for output in step(&mut scheduler) {
                tokens.entry(output.id).or_default().push(output.token_id);
            }
        }
        let mut steps = 0;
        while !scheduler.is_idle() {
            let work = scheduler.schedule();
            prop_assert!(work.prefill_tokens + u64::from(work.decoding_requests) <= u64::from(budget));
            prop_assert!(work.prefill_tokens + u64::from(work.decoding_requests) > 0);
            let mut outputs = Vec::new();
            scheduler.complete(&mut outputs);
            for output in outputs {
                prop_assert_eq!(output.cached_tokens % BLOCK_SIZE, 0);
                prop_assert!(output.cached_tokens < requests[output.id as usize].1);
                tokens.entry(output.id).or_default().push(output.token_id);
            }
            prop_assert!(scheduler.stats().running_requests <= seqs);
            steps += 1;
            prop_assert!(steps < 100_000, "no end");
        }
        for (id, (_, _, output)) in requests.iter().enumerate() {
            let expected: Vec<u32> = (0..*output as u32).map(|at| 900 + at).collect();
            prop_assert_eq!(&tokens[&(id as u64)], &expected);
        }
        prop_assert_eq!(scheduler.cache().pool().free_blocks(), blocks - 1);
    }
}
