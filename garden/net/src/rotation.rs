//! Numbers handed out in turn: what was given back last is handed out last.
//!
//! [`crate::subnets`] and [`crate::ports`] hand out indices of a range. Reuse at once is what
//! makes trouble (a peer's connection, a router's cache, a client that still dials the port), so
//! the ones that were never used come first, from a cursor on, and then the longest unused.
//! Every call is logarithmic in what was given back, whatever the size of the range, and memory
//! is that of what is or was in use.

use std::collections::{BTreeMap, HashMap, HashSet};

/// Indices `0..total`, each free or in use.
#[derive(Debug)]
pub(crate) struct Rotation {
    total: u32,
    /// The next index that was never handed out, and how many such there are from it on
    /// (around the end of the range).
    cursor: u32,
    fresh: u32,
    /// Indices in front of the cursor that were taken by name: the cursor passes over them.
    ahead: HashSet<u32>,
    used: HashSet<u32>,
    /// What was given back, oldest first; and the place of each in it.
    released: BTreeMap<u64, u32>,
    places: HashMap<u32, u64>,
    stamp: u64,
}

impl Rotation {
    /// All of `0..total` free; `cursor` is handed out first (0 if it is out of range).
    pub(crate) fn new(total: u32, cursor: u32) -> Self {
        Self {
            total,
            cursor: if cursor < total { cursor } else { 0 },
            fresh: total,
            ahead: HashSet::new(),
            used: HashSet::new(),
            released: BTreeMap::new(),
            places: HashMap::new(),
            stamp: 0,
        }
    }

    /// Hands out the next one; none when all are in use.
    pub(crate) fn next(&mut self) -> Option<u32> {
        self.skip_taken();
        let index = if self.fresh > 0 {
            let index = self.cursor;
            self.advance();
            index
        } else {
            let (_, index) = self.released.pop_first()?;
            self.places.remove(&index);
            index
        };
        self.used.insert(index);
        Some(index)
    }

    /// Which one [`Rotation::next`] would hand out.
    pub(crate) fn head(&mut self) -> Option<u32> {
        self.skip_taken();
        if self.fresh > 0 {
            return Some(self.cursor);
        }
        self.released.first_key_value().map(|(_, index)| *index)
    }

    /// Takes this very one; false when it is in use or out of range.
    pub(crate) fn take(&mut self, index: u32) -> bool {
        if index >= self.total || !self.used.insert(index) {
            return false;
        }
        if let Some(place) = self.places.remove(&index) {
            self.released.remove(&place);
        } else if self.is_fresh(index) {
            self.ahead.insert(index);
        }
        true
    }

    /// Gives one back; false when it was not in use.
    pub(crate) fn release(&mut self, index: u32) -> bool {
        if !self.used.remove(&index) {
            return false;
        }
        self.stamp += 1;
        self.released.insert(self.stamp, index);
        self.places.insert(index, self.stamp);
        true
    }

    /// Lets the never used ones begin behind `index`. For a start with things in use: what was
    /// freed shortly before is most likely in front of them.
    pub(crate) fn begin_behind(&mut self, index: u32) {
        if self.fresh == self.total && self.total > 0 {
            self.cursor = (index % self.total + 1) % self.total;
        }
    }

    pub(crate) fn total(&self) -> u32 {
        self.total
    }

    fn is_fresh(&self, index: u32) -> bool {
        let distance = if index >= self.cursor {
            index - self.cursor
        } else {
            index + (self.total - self.cursor)
        };
        distance < self.fresh && !self.ahead.contains(&index)
    }

    fn advance(&mut self) {
        self.cursor = (self.cursor + 1) % self.total;
        self.fresh -= 1;
    }

    fn skip_taken(&mut self) {
        while self.fresh > 0 && self.ahead.remove(&self.cursor) {
            self.advance();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_was_freed_is_handed_out_last() {
        let mut rotation = Rotation::new(3, 0);
        assert_eq!(rotation.next(), Some(0));
        assert!(rotation.release(0));
        assert_eq!(rotation.next(), Some(1));
        assert!(rotation.release(1));
        assert_eq!(
            [
                rotation.next(),
                rotation.next(),
                rotation.next(),
                rotation.next()
            ],
            [Some(2), Some(0), Some(1), None]
        );
    }

    #[test]
    fn a_cursor_goes_around() {
        let mut rotation = Rotation::new(3, 2);
        assert_eq!(rotation.head(), Some(2));
        assert_eq!(
            [
                rotation.next(),
                rotation.next(),
                rotation.next(),
                rotation.next()
            ],
            [Some(2), Some(0), Some(1), None]
        );
        assert_eq!(Rotation::new(3, 9).next(), Some(0));
    }

    #[test]
    fn one_taken_by_name_and_freed_waits_for_its_turn() {
        let mut rotation = Rotation::new(3, 0);
        assert!(rotation.take(0));
        assert!(!rotation.take(0));
        assert!(rotation.release(0));
        assert!(!rotation.release(0));
        assert_eq!(
            [rotation.next(), rotation.next(), rotation.next()],
            [Some(1), Some(2), Some(0)]
        );
    }

    #[test]
    fn an_empty_range_has_nothing() {
        let mut rotation = Rotation::new(0, 0);
        assert_eq!((rotation.head(), rotation.next()), (None, None));
        assert!(!rotation.take(0));
    }

    proptest! {
        /// Beside a list that does the same slowly: free ones in order, the next at the front.
        #[test]
        fn is_a_queue(total in 1u32..12, cursor in 0u32..12, steps in prop::collection::vec((0u8..3, 0u32..12), 0..80)) {
            let mut rotation = Rotation::new(total, cursor);
            let start = if cursor < total { cursor } else { 0 };
            let mut free: Vec<u32> = (start..total).chain(0..start).collect();
            for (kind, index) in steps {
                match kind {
                    0 => {
                        prop_assert_eq!(rotation.head(), free.first().copied());
                        let expected = (!free.is_empty()).then(|| free.remove(0));
                        prop_assert_eq!(rotation.next(), expected);
                    }
                    1 => {
                        let place = free.iter().position(|one| *one == index);
                        prop_assert_eq!(rotation.take(index), place.is_some());
                        if let Some(place) = place {
                            free.remove(place);
                        }
                    }
                    _ => {
                        let in_use = index < total && !free.contains(&index);
                        prop_assert_eq!(rotation.release(index), in_use);
                        if in_use {
                            free.push(index);
                        }
                    }
                }
            }
        }
    }
}
