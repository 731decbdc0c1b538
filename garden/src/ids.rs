//! Id maps of unprivileged containers: one for all, or a range of its own for each.
//!
//! By default all share one map, as Guardian has it: container root is the host's highest id, any
//! other id is itself. With a `Pool` every container gets ids that no other container has, so
//! that one which breaks out of its namespaces is still nobody to the others. Who has which range
//! stands in the containers' records and nowhere else: a server that starts reads it from there.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use crate::bundle::IdRange;

/// Ranges of ids for containers to have of their own.
#[derive(Debug)]
pub(crate) struct Pool {
    plan: Plan,
    taken: Mutex<Taken>,
}

/// Which ids a `Pool` hands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// The first id on the host.
    pub first: u32,
    /// Ids of each container.
    pub size: u32,
    /// How many ranges there are.
    pub ranges: u32,
}

#[derive(Debug, Default)]
struct Taken {
    numbers: BTreeSet<u32>,
    /// Where the search goes on: what was given back last is used last.
    next: u32,
}

impl Plan {
    /// As many ranges of `size` as there are from `first` on; `None` when there is no room for one.
    pub fn fill(first: u32, size: u32) -> Option<Self> {
        // The highest id is the root of containers that share a map.
        let room = highest().checked_sub(first)?;
        let ranges = room.checked_div(size)?;
        (ranges > 0).then_some(Self {
            first,
            size,
            ranges,
        })
    }

    fn range(self, number: u32) -> Option<IdRange> {
        let outside = number.checked_mul(self.size)?.checked_add(self.first)?;
        Some(IdRange {
            inside: 0,
            outside,
            size: self.size,
        })
    }

    /// The number of the range that begins at this id.
    fn number(self, outside: u32) -> Option<u32> {
        let number = outside.checked_sub(self.first)?.checked_div(self.size)?;
        (number < self.ranges).then_some(number)
    }
}

impl Pool {
    /// All of it free.
    pub(crate) fn new(plan: Plan) -> Self {
        Self {
            plan,
            taken: Mutex::default(),
        }
    }

    fn taken(&self) -> std::sync::MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a range; `None` when all are taken.
    pub(crate) fn take(&self) -> Option<Vec<IdRange>> {
        let mut taken = self.taken();
        let from = taken.next;
        let number = (from..self.plan.ranges)
            .chain(0..from)
            .find(|number| !taken.numbers.contains(number))?;
        taken.numbers.insert(number);
        taken.next = (number + 1) % self.plan.ranges;
        drop(taken);
        self.plan.range(number).map(|range| vec![range])
    }

    /// Notes a range as taken: a container has it. One of another plan overlaps several.
    pub(crate) fn claim(&self, ids: &[IdRange]) {
        let mut taken = self.taken();
        for range in ids
            .iter()
            .filter(|range| range.size > 1 || range.inside == 0)
        {
            let last = range.outside.saturating_add(range.size.saturating_sub(1));
            let begin = range.outside.max(self.plan.first);
            if last < begin {
                continue;
            }
            let first = self.plan.number(begin);
            let last = self.plan.number(last).unwrap_or(self.plan.ranges - 1);
            // The shared map has nearly all ids there are: that is not a range of its own.
            if let Some(first) = first
                && range.size <= self.plan.size.max(1 << 16)
            {
                taken.numbers.extend(first..=last);
            }
        }
    }

    /// Frees the range of a container that is no more.
    pub(crate) fn give_back(&self, ids: &[IdRange]) {
        let mut taken = self.taken();
        for range in ids {
            if let Some(number) = self.plan.number(range.outside) {
                taken.numbers.remove(&number);
            }
        }
    }
}

/// The map that all containers share unless they have ranges of their own: container root is the
/// host's highest id, which nobody else has; `length` ids from 1 on are those from `start` on.
///
/// `None` as length is all that there are.
pub fn shared(start: u32, length: Option<u32>) -> Vec<IdRange> {
    let highest = highest();
    let room = highest.saturating_sub(start);
    vec![
        IdRange {
            inside: 0,
            outside: highest,
            size: 1,
        },
        IdRange {
            inside: 1,
            outside: start,
            size: length.unwrap_or(room).min(room),
        },
    ]
}

/// The highest id of the server's own user namespace.
fn highest() -> u32 {
    let table = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let ends = table.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().map(str::parse::<u64>);
        let (Some(Ok(first)), _, Some(Ok(size))) = (fields.next(), fields.next(), fields.next())
        else {
            return None;
        };
        let last = (first + size).saturating_sub(1);
        u32::try_from(last.min(u64::from(u32::MAX - 1))).ok()
    });
    ends.max().unwrap_or(u32::MAX - 1)
}

/// The host's id of an id inside; `None` when it is not mapped. Without a map they are the same.
pub(crate) fn on_host(ids: &[IdRange], inside: u32) -> Option<u32> {
    if ids.is_empty() {
        return Some(inside);
    }
    ids.iter().find_map(|range| {
        let offset = inside.checked_sub(range.inside)?;
        (offset < range.size).then(|| range.outside + offset)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Plan = Plan {
        first: 100_000,
        size: 1000,
        ranges: 3,
    };

    fn begins(ids: Option<Vec<IdRange>>) -> Option<u32> {
        ids.map(|ids| ids[0].outside)
    }

    #[test]
    fn a_range_is_had_once_and_used_again_last() {
        let pool = Pool::new(PLAN);
        let first = pool.take().unwrap();
        assert_eq!(first[0].outside, 100_000);
        pool.give_back(&first);
        assert_eq!(begins(pool.take()), Some(101_000));
        assert_eq!(begins(pool.take()), Some(102_000));
        assert_eq!(begins(pool.take()), Some(100_000));
        assert_eq!(pool.take(), None);
    }

    #[test]
    fn what_records_name_is_taken_also_under_another_plan() {
        let pool = Pool::new(PLAN);
        pool.claim(&[IdRange {
            inside: 0,
            outside: 100_500,
            size: 1000,
        }]);
        pool.claim(&shared(1, None));
        assert_eq!(begins(pool.take()), Some(102_000));
        assert_eq!(pool.take(), None);
    }

    #[test]
    fn ids_are_found_on_the_host() {
        let ids = shared(1, Some(100));
        assert_eq!(on_host(&ids, 0), Some(highest()));
        assert_eq!(on_host(&ids, 100), Some(100));
        assert_eq!(on_host(&ids, 101), None);
        assert_eq!(on_host(&[], 7), Some(7));
        assert_eq!(Plan::fill(highest(), 10), None);
    }
}
