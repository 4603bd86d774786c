//! Expected residency: what was picked is expected at that engine until its events confirm it or it is withdrawn, and
//! never passes for known.

use std::time::{Duration, Instant};

use warmroute_ext_proc::{EndpointPicker, HeaderList, StreamEnd, StreamLease};

use crate::fixture::{BLOCK_TOKENS, Fixture, PREFIX_ONLY, completion};

/// Eight blocks and one token.
fn prompt() -> Vec<u32> {
    (0..8 * BLOCK_TOKENS + 1).collect()
}

/// A pool of one engine that holds something else.
fn pool(endpoints: usize) -> Fixture {
    let fixture = Fixture::new(PREFIX_ONLY, endpoints);
    fixture.announce(0, &(70_000..70_000 + BLOCK_TOKENS).collect::<Vec<_>>());
    fixture
}

/// Known and expected blocks of the picked endpoint, and tokens, by the last receipt.
fn last(fixture: &Fixture) -> [u32; 4] {
    let receipt = fixture.receipts.find("last").unwrap();
    let picked = &receipt.candidates[0];
    [
        picked.known_blocks,
        picked.expected_blocks,
        receipt.predicted_cached_tokens,
        receipt.expected_cached_tokens,
    ]
}

fn withdraw_after(fixture: &Fixture, time: Duration) {
    fixture.expectations.withdraw_due(Instant::now() + time);
}

#[tokio::test]
async fn what_was_just_picked_is_expected_and_counted_apart_from_what_is_known() {
    let fixture = pool(3);
    let first = fixture.picker.pick(completion(&prompt())).await.unwrap();
    assert_eq!(last(&fixture), [0, 0, 0, 0]);
    let second = fixture.picker.pick(completion(&prompt())).await.unwrap();
    assert_eq!(first.destinations, second.destinations, "a burst stays together");
    assert_eq!(last(&fixture), [0, 8, 0, 128]);
    let page = fixture.metrics.page().unwrap();
    assert!(page.contains("warmroute_predicted_cached_tokens_total 0"), "what is expected isn't predicted");
}

#[tokio::test]
async fn events_confirm_it_and_nothing_is_left_to_withdraw() {
    let fixture = pool(1);
    let mut picked = fixture.picker.pick(completion(&prompt())).await.unwrap();
    assert_eq!(fixture.index.stats().expected_blocks, 8);
    fixture.announce(0, &prompt()[..8 * BLOCK_TOKENS as usize]);
    assert_eq!(fixture.index.stats().expectations, 0);
    picked.lease.ended(StreamEnd::GatewayClosed);
    drop(picked);
    withdraw_after(&fixture, Duration::from_secs(60));
    let _again = fixture.picker.pick(completion(&prompt())).await.unwrap();
    assert_eq!(last(&fixture), [8, 8, 128, 128]);
}

#[tokio::test]
async fn it_is_withdrawn_however_the_request_ends() {
    let fixture = pool(1);
    let ends = [
        Some(StreamEnd::ResponseComplete),
        Some(StreamEnd::GatewayClosed),
        Some(StreamEnd::Cancelled),
        // The stream's task panics, or the picker lets it fall.
        None,
    ];
    for end in ends {
        let mut picked = fixture.picker.pick(completion(&prompt())).await.unwrap();
        assert_eq!(last(&fixture), [0, 0, 0, 0], "nothing is left of the one before");
        assert_eq!(fixture.index.stats().expected_blocks, 8);
        if let Some(end) = end {
            picked.lease.response_headers(Some(503), &HeaderList::default());
            picked.lease.ended(end);
        }
        drop(picked);
        // The engine's events may still be on their way for a second, and it counts for two from the pick.
        withdraw_after(&fixture, Duration::from_millis(500));
        assert_eq!(fixture.index.stats().expected_blocks, 8);
        withdraw_after(&fixture, Duration::from_secs(3));
        assert_eq!(fixture.index.stats().expected_blocks, 0);
    }
}

#[tokio::test]
async fn a_request_that_never_ends_is_not_expected_for_ever() {
    let fixture = pool(1);
    let _picked = fixture.picker.pick(completion(&prompt())).await.unwrap();
    withdraw_after(&fixture, Duration::from_secs(590));
    assert_eq!(fixture.index.stats().expected_blocks, 8);
    withdraw_after(&fixture, Duration::from_secs(610));
    assert_eq!(fixture.index.stats().expected_blocks, 0);
}

#[tokio::test]
async fn an_engine_that_restarts_in_between_is_expected_to_hold_nothing_once_its_requests_are_over() {
    let fixture = pool(1);
    fixture.announce(0, &prompt()[..4 * BLOCK_TOKENS as usize]);
    let mut picked = fixture.picker.pick(completion(&prompt())).await.unwrap();
    assert_eq!(last(&fixture), [4, 4, 64, 64]);
    fixture.restart(0);
    // The half that was known is gone with the engine, and what was to come after it isn't reached any more.
    let second = fixture.picker.pick(completion(&prompt())).await.unwrap();
    assert_eq!(last(&fixture)[0], 0);
    assert_eq!(last(&fixture)[2], 0);
    // Its requests break off with it.
    picked.lease.ended(StreamEnd::Cancelled);
    drop(picked);
    drop(second);
    withdraw_after(&fixture, Duration::from_secs(3));
    assert_eq!(fixture.index.stats().expected_blocks, 0);
    let _third = fixture.picker.pick(completion(&prompt())).await.unwrap();
    assert_eq!(last(&fixture), [0, 0, 0, 0]);
}

#[tokio::test]
async fn an_endpoint_that_leaves_takes_its_expectations_along() {
    let mut fixture = pool(2);
    let mut only_second = completion(&prompt());
    only_second.subset = Some(vec![fixture.address(1)]);
    let picked = fixture.picker.pick(only_second).await.unwrap();
    assert_eq!(picked.destinations, [fixture.address(1)]);
    fixture.remove(1);
    let _other = fixture.picker.pick(completion(&prompt())).await.unwrap();
    assert_eq!(last(&fixture), [0, 0, 0, 0]);
    drop(picked);
    withdraw_after(&fixture, Duration::from_secs(3));
    assert_eq!(fixture.index.stats().expected_blocks, 8, "the other's alone");
}
