//! Which bytes of a blob have arrived.

use serde::{Deserialize, Serialize};

/// A set of byte offsets, kept as sorted, disjoint, non-adjacent half-open ranges.
///
/// A fill that runs from the front keeps one range; only out-of-order fills have several, so a
/// vector beats a tree.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RangeSet(Vec<(u64, u64)>);

impl RangeSet {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// The set of all offsets below `end`.
    pub fn prefix(end: u64) -> Self {
        let mut set = Self::new();
        set.insert(0, end);
        set
    }

    /// Adds the offsets from `start` up to, not including, `end`.
    pub fn insert(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        // The run of ranges that touch the new one is replaced by their union.
        let first = self.0.partition_point(|range| range.1 < start);
        let last = self.0.partition_point(|range| range.0 <= end);
        let union = self.0[first..last]
            .iter()
            .fold((start, end), |union, range| (union.0.min(range.0), union.1.max(range.1)));
        self.0.splice(first..last, [union]);
    }

    /// The end of the run of present bytes that begins at `offset`; `offset` itself where the byte
    /// there is missing.
    pub fn contiguous_end(&self, offset: u64) -> u64 {
        match self.0.partition_point(|range| range.0 <= offset).checked_sub(1) {
            Some(index) if self.0[index].1 > offset => self.0[index].1,
            _ => offset,
        }
    }

    /// How many offsets are in the set.
    pub fn len(&self) -> u64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }

    /// The offset after the last one in the set; 0 where there is none.
    pub fn end(&self) -> u64 {
        self.0.last().map_or(0, |range| range.1)
    }

    /// The first offset from `offset` on that is in the set.
    pub fn next_from(&self, offset: u64) -> Option<u64> {
        let range = self.0.get(self.0.partition_point(|range| range.1 <= offset))?;
        Some(range.0.max(offset))
    }

    /// Forgets all but the first `count` ranges.
    pub fn truncate(&mut self, count: usize) {
        self.0.truncate(count);
    }

    /// Whether nothing has arrived.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the ranges are sorted, disjoint and non-empty, as those of a journal must be.
    pub fn is_well_formed(&self) -> bool {
        self.0.iter().all(|(start, end)| start < end) && self.0.windows(2).all(|pair| pair[0].1 < pair[1].0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn behaves_as_a_set_of_offsets(inserts in prop::collection::vec((0u64..64, 0u64..64), 0..20)) {
            let mut set = RangeSet::new();
            let mut model = [false; 64];
            for (start, end) in inserts {
                set.insert(start, end);
                for offset in start..end {
                    model[usize::try_from(offset).unwrap()] = true;
                }
                prop_assert!(set.is_well_formed(), "{set:?}");
            }
            prop_assert_eq!(set.len(), model.iter().filter(|present| **present).count() as u64);
            prop_assert_eq!(set.end(), (0..64).rev().find(|at| model[*at]).map_or(0, |last| last as u64 + 1));
            for offset in 0..64u64 {
                let run = model[usize::try_from(offset).unwrap()..].iter().take_while(|present| **present).count();
                prop_assert_eq!(set.contiguous_end(offset), offset + run as u64);
                let next = (offset..64).find(|offset| model[usize::try_from(*offset).unwrap()]);
                prop_assert_eq!(set.next_from(offset), next);
            }
        }
    }
}
