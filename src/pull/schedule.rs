//! Which bytes of a blob in flight to fetch next. Pure.
//!
//! A fill fetches what its followers want and no more: a client that reads a table of contents behind the files
//! of a layer costs those bytes, not the layer. A fetch ends at the next byte that is there or on its way, so that
//! what has arrived is never written again: a reader may have it already, and the hash of it may be taken. A byte
//! that a fetch under way will bring soon is waited for; one far ahead of it gets a fetch of its own, and the one
//! under way then ends there.

use std::time::Duration;

use crate::oci::ByteRange;
use crate::store::RangeSet;

/// A byte that a fetch brings within this time is waited for. Each fetch that is cut short costs what its
/// connection has on its way, so that clients which read a blob by many ranges on a fast link, as containerd's
/// parallel fetch does, are better served by the one transfer under way.
const SOON: Duration = Duration::from_secs(2);

/// How far ahead of a fetch a byte is waited for, at least, and before its speed is known.
const NEAREST: u64 = 4 << 20;
const UNKNOWN: u64 = 64 << 20;

/// How fast the bytes of a blob come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Speed {
    /// How many there were at the last look.
    total: u64,
    /// Of the last moments; nothing before the first of them is over.
    bytes_per_second: Option<f64>,
}

impl Speed {
    /// Nothing is known yet but how many bytes there are.
    pub(super) const fn from(total: u64) -> Self {
        Self { total, bytes_per_second: None }
    }

    /// So many bytes are there now, and the last look was so long ago. A fill that has started over has less
    /// than before, and brings nothing for one look.
    pub(super) fn observe(&mut self, total: u64, ago: Duration) {
        let brought = total.saturating_sub(self.total);
        self.total = total;
        #[expect(clippy::cast_precision_loss, reason = "a speed is an estimate")]
        let now = brought as f64 / ago.as_secs_f64().max(0.001);
        self.bytes_per_second = Some(self.bytes_per_second.map_or(now, |before| f64::midpoint(before, now)));
    }

    /// How far ahead of a fetch a byte is worth a fetch of its own.
    fn far(self) -> u64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a speed is not negative"
        )]
        let reach = |speed: f64| (speed * SOON.as_secs_f64()) as u64;
        self.bytes_per_second.map_or(UNKNOWN, reach).max(NEAREST)
    }
}

/// A fetch ahead of the front with less than this before it has its successor started, which hides the time to
/// its first byte. That of the front is the front itself: what it brings is hashed as it comes.
const LOOKAHEAD: u64 = 16 << 20;

/// A fetch under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fetch {
    /// Its first byte. All from here to `end` is there or on its way.
    pub(super) start: u64,
    /// The next byte that it brings.
    pub(super) position: u64,
    /// Where it will end; `u64::MAX` for the end of the blob.
    pub(super) end: u64,
}

/// The first part of what is wanted that is neither there nor comes soon, as far as one fetch should go.
/// Where it lies inside of a fetch under way, that one is to end at its start.
pub(super) fn next_fetch(
    wants: &[ByteRange],
    arrived: &RangeSet,
    under_way: &[Fetch],
    size: Option<u64>,
    speed: Speed,
) -> Option<ByteRange> {
    let (far, size) = (speed.far(), size.unwrap_or(u64::MAX));
    wants.iter().find_map(|want| {
        let end = want.end.min(size);
        let start = first_missing(want.start, end, arrived, under_way, far)?;
        Some(ByteRange::new(start, end.min(boundary(start, arrived, under_way))))
    })
}

/// The first byte before `end` that nobody brings soon.
fn first_missing(start: u64, end: u64, arrived: &RangeSet, under_way: &[Fetch], far: u64) -> Option<u64> {
    let mut at = start;
    loop {
        at = arrived.contiguous_end(at);
        if at >= end {
            return None;
        }
        let Some(fetch) = under_way.iter().find(|fetch| fetch.start <= at && at < fetch.end) else {
            return Some(at);
        };
        if at.saturating_sub(fetch.position) >= far {
            return Some(at);
        }
        let is_at_front = fetch.start <= arrived.contiguous_end(0);
        if is_at_front || fetch.end - fetch.position >= LOOKAHEAD {
            return None;
        }
        at = fetch.end;
    }
}

/// The next byte behind `start` that is there or on its way.
fn boundary(start: u64, arrived: &RangeSet, under_way: &[Fetch]) -> u64 {
    let fetches = under_way.iter().map(|fetch| fetch.start).filter(|at| *at > start);
    fetches.chain(arrived.next_from(start)).min().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;
    const SIZE: u64 = 600 * MIB;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::new(start, end)
    }

    fn arrived(ranges: &[(u64, u64)]) -> RangeSet {
        let mut set = RangeSet::new();
        for (start, end) in ranges {
            set.insert(*start, *end);
        }
        set
    }

    #[test]
    fn a_fetch_goes_to_the_next_byte_that_is_there_or_on_its_way() {
        let whole = [range(0, u64::MAX)];
        let next = |wants: &[ByteRange], ranges: &[(u64, u64)], fetches: &[(u64, u64, u64)]| {
            let fetches: Vec<_> = fetches
                .iter()
                .map(|(start, position, end)| Fetch { start: *start, position: *position, end: *end })
                .collect();
            next_fetch(wants, &arrived(ranges), &fetches, Some(SIZE), Speed::from(0))
        };
        assert_eq!(next(&whole, &[], &[]), Some(range(0, SIZE)));
        assert_eq!(next(&whole, &[(9, 20)], &[]), Some(range(0, 9)), "up to what is there");
        assert_eq!(next(&whole, &[(0, 9)], &[(90, 91, 99)]), Some(range(9, 90)), "or on its way");
        assert_eq!(next(&whole, &[(0, SIZE)], &[]), None);
        assert_eq!(next(&[range(5, 9)], &[], &[]), Some(range(5, 9)), "and no further than is wanted");
        assert_eq!(next(&[range(5, 9)], &[], &[(0, 1, u64::MAX)]), None, "it comes soon");
        assert_eq!(
            next(&[range(90 * MIB, u64::MAX)], &[], &[(0, MIB, u64::MAX)]),
            Some(range(90 * MIB, SIZE)),
            "far ahead"
        );
        let ahead = [range(100 * MIB, u64::MAX)];
        assert_eq!(
            next(&ahead, &[], &[(100 * MIB, 109 * MIB, 120 * MIB)]),
            Some(range(120 * MIB, SIZE)),
            "the successor of a fetch that ends soon"
        );
        assert_eq!(next(&ahead, &[], &[(100 * MIB, 101 * MIB, 120 * MIB)]), None, "but not too early");
        assert_eq!(
            next(&whole, &[], &[(0, 9 * MIB, 20 * MIB)]),
            None,
            "nor the front's, which goes on itself"
        );
    }

    #[test]
    fn what_comes_soon_depends_on_the_speed() {
        let fetch = [Fetch { start: 0, position: 0, end: u64::MAX }];
        let splits = |at: u64, speed| {
            next_fetch(&[range(at, at + 9)], &RangeSet::new(), &fetch, Some(SIZE), speed).is_some()
        };
        let at = |bytes_per_second| {
            let mut speed = Speed::from(0);
            speed.observe(bytes_per_second, Duration::from_secs(1));
            speed
        };
        assert!(!splits(63 * MIB, Speed::from(0)) && splits(64 * MIB, Speed::from(0)));
        assert!(!splits(199 * MIB, at(100 * MIB)) && splits(201 * MIB, at(100 * MIB)));
        assert!(!splits(3 * MIB, at(1000)) && splits(5 * MIB, at(1000)));
        let mut stalled = at(100 * MIB);
        for _ in 0..9 {
            stalled.observe(100 * MIB, Duration::from_secs(1));
        }
        assert!(splits(5 * MIB, stalled));
        let mut restarted = at(100 * MIB);
        restarted.observe(0, Duration::from_secs(1));
        restarted.observe(100 * MIB, Duration::from_secs(1));
        assert!(
            !splits(140 * MIB, restarted) && splits(160 * MIB, restarted),
            "what was lost is not counted"
        );
    }

    proptest! {
        /// Fetches that get on in random order, and are split as the plan says.
        #[test]
        fn whatever_is_wanted_comes_and_nothing_comes_twice(
            starts in prop::collection::vec((0..600u64, 1..600u64), 1..12),
            steps in prop::collection::vec((0usize..16, 1..40u64), 0..200),
        ) {
            let wants: Vec<_> =
                starts.iter().map(|(start, len)| range(start * MIB, (start + len).min(600) * MIB)).collect();
            let (mut set, mut fetches, mut brought) = (RangeSet::new(), Vec::<Fetch>::new(), 0);
            let mut speed = Speed::from(0);
            let mut steps = steps.into_iter();
            loop {
                while fetches.len() < 8
                    && let Some(next) = next_fetch(&wants, &set, &fetches, Some(SIZE), speed)
                {
                    prop_assert!(set.contiguous_end(next.start) == next.start, "fetched again");
                    for fetch in fetches.iter_mut().filter(|fetch| fetch.start < next.start) {
                        fetch.end = fetch.end.min(next.start);
                    }
                    fetches.push(Fetch { start: next.start, position: next.start, end: next.end });
                }
                if fetches.is_empty() {
                    break;
                }
                let (which, mib) = steps.next().unwrap_or((0, 40));
                speed.observe(brought, Duration::from_secs(which as u64 % 3));
                let index = which % fetches.len();
                let fetch = &mut fetches[index];
                let end = (fetch.position + mib * MIB).min(fetch.end);
                brought += end - fetch.position;
                set.insert(fetch.position, end);
                fetch.position = end;
                if fetch.position == fetch.end {
                    fetches.swap_remove(index);
                }
            }
            for want in wants {
                prop_assert!(set.contiguous_end(want.start) >= want.end, "{want:?} is not there");
            }
            prop_assert_eq!(brought, set.len(), "a byte came twice");
        }
    }
}
