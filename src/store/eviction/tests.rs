#![allow(clippy::cast_precision_loss, reason = "costs are estimates")]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const DAY: u32 = 86_400;

fn layer(key: u64, bytes: u64) -> Object {
    Object { key, bytes, class: Class::Layer, cost: 0.2 + bytes as f32 / 40e6, dependents: 1 }
}

/// Fetched for what it is, at the same cost per byte as a layer.
fn metadata(key: u64) -> Object {
    Object { key, bytes: 2_000, class: Class::Metadata, cost: 0.2, dependents: 0 }
}

fn anyone(_: Slot) -> bool {
    true
}

/// Evicts the next one.
fn evict(policy: &mut dyn Policy, now: u32) -> Option<Slot> {
    let victim = policy.victim(now, &mut anyone)?;
    policy.remove(victim);
    Some(victim)
}

fn each(check: impl Fn(Algorithm, Box<dyn Policy>)) {
    for algorithm in Algorithm::ALL {
        check(algorithm, algorithm.policy());
    }
}

#[test]
fn every_name_leads_back_to_its_policy() {
    for algorithm in Algorithm::ALL {
        assert_eq!(algorithm.name().parse(), Ok(algorithm));
    }
    assert_eq!("lfu".parse::<Algorithm>(), Err(()));
}

#[test]
fn nothing_held_has_no_victim() {
    each(|algorithm, mut policy| {
        assert_eq!(policy.victim(0, &mut anyone), None, "{algorithm:?}");
        policy.touch(3, 1);
        policy.remove(3);
        policy.update(3, &layer(3, 1));
        assert_eq!(policy.victim(1, &mut anyone), None, "{algorithm:?}");
    });
}

#[test]
fn everything_goes_in_the_end_and_only_once() {
    each(|algorithm, mut policy| {
        for slot in 0..3_000 {
            let object =
                if slot % 3 == 0 { metadata(slot.into()) } else { layer(slot.into(), 1 << (slot % 30)) };
            policy.insert(slot, &object, None, slot);
            policy.touch(slot / 2, slot);
        }
        let gone: BTreeSet<_> = std::iter::from_fn(|| evict(&mut *policy, 4_000)).collect();
        assert_eq!(gone.len(), 3_000, "{algorithm:?}");
    });
}

#[test]
fn the_work_is_bounded_when_nothing_may_go() {
    each(|algorithm, mut policy| {
        for slot in 0..10_000 {
            policy.insert(slot, &layer(slot.into(), 1_000_000), None, slot);
            policy.touch(slot, slot + 1);
        }
        let mut asked = 0;
        let victim = policy.victim(20_000, &mut |_| {
            asked += 1;
            false
        });
        assert_eq!(victim, None, "{algorithm:?}");
        assert!(asked <= 2 * TRIES, "{algorithm:?} asked {asked} times");
    });
}

#[test]
fn the_only_one_that_may_go_is_found_by_asking_again() {
    each(|algorithm, mut policy| {
        for slot in 0..10_000 {
            policy.insert(slot, &layer(slot.into(), 1_000_000), None, slot);
        }
        let found = (0..200).find_map(|_| policy.victim(20_000, &mut |slot| slot == 7_777));
        assert_eq!(found, Some(7_777), "{algorithm:?}");
    });
}

#[test]
fn lru_evicts_in_the_order_of_last_use_after_a_restart_too() {
    let mut policy = Lru::new();
    // Found in the order of their names, not of their use.
    for slot in 0..1_000_u32 {
        let last_used = slot.wrapping_mul(7_919) % 1_009;
        policy.insert(slot, &layer(slot.into(), 1), Some(History { frequency: 1, last_used }), 2_000);
    }
    for slot in (0..1_000).step_by(7) {
        policy.touch(slot, 2_000 + slot);
    }
    let used: Vec<_> = std::iter::from_fn(|| {
        let victim = policy.victim(5_000, &mut anyone)?;
        let used = policy.history(victim).last_used;
        policy.remove(victim);
        Some(used)
    })
    .collect();
    assert_eq!(used.len(), 1_000);
    assert!(used.is_sorted());
}

#[test]
fn a_scan_does_not_push_out_what_is_used() {
    for algorithm in [Algorithm::Sieve, Algorithm::S3Fifo, Algorithm::Worth] {
        let mut policy = algorithm.policy();
        for slot in 0..100 {
            policy.insert(slot, &layer(slot.into(), 1_000_000), None, 0);
            for hour in 1..6 {
                policy.touch(slot, hour * 3_600);
            }
        }
        for slot in 100..200 {
            policy.insert(slot, &layer(slot.into(), 1_000_000), None, 7 * 3_600);
        }
        let mut kept: BTreeSet<_> = (0..100).collect();
        // Ten times as much as fits, once each.
        for key in 200..2_200 {
            let slot = evict(&mut *policy, 8 * 3_600 + key).unwrap();
            kept.remove(&slot);
            policy.insert(slot, &layer(key.into(), 1_000_000), None, 8 * 3_600 + key);
        }
        assert!(kept.len() >= 90, "{algorithm:?} kept {}", kept.len());
    }
}

#[test]
fn what_comes_back_is_remembered() {
    let mut policy = Worth::new(Tuning::default());
    policy.insert(0, &layer(1, 1_000_000), None, 0);
    for hour in 1..10 {
        policy.touch(0, hour * 3_600);
    }
    let before = policy.history(0).frequency;
    policy.remove(0);
    policy.insert(5, &layer(1, 1_000_000), None, 11 * 3_600);
    policy.insert(6, &layer(2, 1_000_000), None, 11 * 3_600);
    assert!(policy.history(5).frequency + 8 >= before);
    assert!(policy.history(6).frequency < before / 2 + 64);
    assert_eq!(policy.victim(12 * 3_600, &mut anyone), Some(6));
}

#[test]
fn use_outlives_a_restart() {
    each(|algorithm, mut before| {
        for slot in 0..50 {
            before.insert(slot, &layer(slot.into(), 1_000_000), None, slot);
        }
        for slot in (0..50).step_by(2) {
            before.touch(slot, DAY);
            before.touch(slot, DAY + 60);
        }
        let mut after = algorithm.policy();
        for slot in 0..50 {
            after.insert(slot, &layer(slot.into(), 1_000_000), Some(before.history(slot)), 2 * DAY);
            assert_eq!(after.history(slot).last_used, before.history(slot).last_used, "{algorithm:?}");
        }
        let first: Vec<_> = (0..25).map_while(|_| evict(&mut *after, 2 * DAY)).collect();
        // S3-FIFO keeps a tenth of the bytes for what is new, whatever it is.
        let right = first.iter().filter(|slot| **slot % 2 == 1).count();
        assert!(right >= 22, "{algorithm:?} let {first:?} go");
    });
}

#[test]
fn metadata_outlives_layers_but_not_for_ever() {
    let mut policy = Worth::new(Tuning::default());
    for slot in 0..100 {
        policy.insert(slot, &metadata(slot.into()), None, 0);
    }
    for slot in 100..200 {
        policy.insert(slot, &layer(slot.into(), 30_000_000), None, 3_600);
    }
    let layers: Vec<_> = (0..100).map_while(|_| evict(&mut policy, 3_700)).collect();
    assert!(layers.iter().all(|slot| *slot >= 100), "{layers:?}");
    // Nobody has asked for them for a year.
    for slot in 100..110 {
        policy.insert(slot, &layer(slot.into(), 30_000_000), None, 365 * DAY);
    }
    assert!(evict(&mut policy, 365 * DAY).unwrap() < 100);
}

#[test]
fn what_is_dear_to_fetch_and_what_many_need_stays_longer() {
    let far = Object { cost: 60.0, ..layer(1, 10_000_000) };
    let shared = Object { dependents: 40, ..layer(1, 10_000_000) };
    for better in [far, shared] {
        let mut policy = Worth::new(Tuning::default());
        policy.insert(0, &layer(1, 10_000_000), None, 0);
        policy.insert(1, &layer(2, 10_000_000), None, 0);
        policy.update(0, &better);
        assert_eq!(policy.victim(600, &mut anyone), Some(1));
        policy.update(0, &layer(1, 10_000_000));
        policy.update(1, &better);
        assert_eq!(policy.victim(600, &mut anyone), Some(0));
    }
}

#[test]
fn odd_numbers_do_not_upset_worth() {
    let mut policy = Worth::new(Tuning::default());
    let odd = [(0, f32::NAN), (0, 0.0), (u64::MAX, f32::INFINITY), (1, -3.0), (u64::MAX, 1e-30)];
    for (slot, (bytes, cost)) in (0..).zip(odd) {
        policy.insert(slot, &Object { bytes, cost, ..layer(slot.into(), 0) }, None, u32::MAX);
        for _ in 0..100 {
            policy.touch(slot, 0);
        }
    }
    assert_eq!(std::iter::from_fn(|| evict(&mut policy, 0)).count(), odd.len());
}

#[test]
fn a_policy_takes_little_memory() {
    each(|algorithm, policy| {
        assert!(policy.bytes_per_slot() <= 32, "{algorithm:?}: {}", policy.bytes_per_slot());
    });
}

#[derive(Debug, Clone)]
enum Step {
    Insert { slot: Slot, key: u64, bytes: u64, history: Option<u8> },
    Touch(Slot),
    Update(Slot, u16),
    Remove(Slot),
    Pin(Slot),
    Unpin(Slot),
    Evict,
}

fn step() -> impl Strategy<Value = Step> {
    let slot = 0u32..40;
    prop_oneof![
        4 => (slot.clone(), 0u64..100, 1u64..10_000_000, prop::option::of(any::<u8>()))
            .prop_map(|(slot, key, bytes, history)| Step::Insert { slot, key: key << 32 | key, bytes, history }),
        4 => slot.clone().prop_map(Step::Touch),
        1 => (slot.clone(), any::<u16>()).prop_map(|(slot, dependents)| Step::Update(slot, dependents)),
        1 => slot.clone().prop_map(Step::Remove),
        1 => slot.clone().prop_map(Step::Pin),
        1 => slot.prop_map(Step::Unpin),
        3 => Just(Step::Evict),
    ]
}

proptest! {
    #[test]
    fn any_sequence_keeps_to_what_is_held_and_not_pinned(
        which in 0..Algorithm::ALL.len(),
        steps in prop::collection::vec((step(), 0u32..100_000), 1..300),
    ) {
        let mut policy = Algorithm::ALL[which].policy();
        let mut held: BTreeMap<Slot, Object> = BTreeMap::new();
        let mut pinned = BTreeSet::new();
        let mut now = 0;
        for (step, later) in steps {
            now += later;
            match step {
                Step::Insert { slot, key, bytes, history } => {
                    let history = history.map(|frequency| History { frequency, last_used: now / 2 });
                    held.insert(slot, layer(key, bytes));
                    policy.insert(slot, &layer(key, bytes), history, now);
                }
                Step::Touch(slot) => policy.touch(slot, now),
                Step::Update(slot, dependents) => {
                    if let Some(object) = held.get_mut(&slot) {
                        object.dependents = dependents;
                        policy.update(slot, object);
                    }
                }
                Step::Remove(slot) => {
                    held.remove(&slot);
                    policy.remove(slot);
                }
                Step::Pin(slot) => {
                    pinned.insert(slot);
                }
                Step::Unpin(slot) => {
                    pinned.remove(&slot);
                }
                Step::Evict => {
                    let victim = policy.victim(now, &mut |slot| !pinned.contains(&slot));
                    let expected = held.keys().any(|slot| !pinned.contains(slot));
                    prop_assert_eq!(victim.is_some(), expected);
                    if let Some(victim) = victim {
                        prop_assert!(held.remove(&victim).is_some() && !pinned.contains(&victim));
                        policy.remove(victim);
                    }
                }
            }
        }
        let rest: BTreeSet<_> = std::iter::from_fn(|| evict(&mut *policy, now)).collect();
        prop_assert_eq!(rest, held.into_keys().collect());
    }
}
