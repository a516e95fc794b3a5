//! Which bytes of a blob in flight to fetch next. Pure.
//!
//! A fill fetches what its followers want and no more: a client that reads a table of contents behind the files
//! of a layer costs those bytes, not the layer. A fetch ends at the next byte that is there or on its way, so that
//! what has arrived is never written again: a reader may have it already, and the hash of it may be taken. A byte
//! that a fetch under way will bring soon is waited for; one far ahead of it gets a fetch of its own, and the one
//! under way then ends there.

use crate::oci::ByteRange;
use crate::store::RangeSet;

/// A byte closer than this to where a fetch stands is waited for: less than what a connection has on its way
/// on a path of 330 Mbit/s and 100 ms.
const FAR: u64 = 4 << 20;

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
) -> Option<ByteRange> {
    let size = size.unwrap_or(u64::MAX);
    wants.iter().find_map(|want| {
        let end = want.end.min(size);
        let start = first_missing(want.start, end, arrived, under_way)?;
        Some(ByteRange::new(start, end.min(boundary(start, arrived, under_way))))
    })
}

/// The first byte before `end` that nobody brings soon.
fn first_missing(start: u64, end: u64, arrived: &RangeSet, under_way: &[Fetch]) -> Option<u64> {
    let mut at = start;
    loop {
        at = arrived.contiguous_end(at);
        if at >= end {
            return None;
        }
        let Some(fetch) = under_way.iter().find(|fetch| fetch.start <= at && at < fetch.end) else {
            return Some(at);
        };
        if at.saturating_sub(fetch.position) >= FAR {
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
            next_fetch(wants, &arrived(ranges), &fetches, Some(SIZE))
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
            let mut steps = steps.into_iter();
            loop {
                while fetches.len() < 8
                    && let Some(next) = next_fetch(&wants, &set, &fetches, Some(SIZE))
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
