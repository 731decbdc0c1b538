//! Running peas by id alone.
//!
//! Garden's clients ask for the metrics of a pea as if its id were a handle. Ids are scoped to
//! containers here, so several peas may have one; the index keeps all of them, and a look-up costs
//! the same for any number of containers. Written when a pea starts or is found after a restart,
//! and when it has ended.

use std::collections::HashMap;
use std::sync::{Mutex, Weak};

use crate::container::Container;
use crate::model::ProcessId;
use crate::services::lock;

/// Where a pea runs.
#[derive(Clone)]
pub(crate) struct Seat {
    pub(crate) container: Weak<Container>,
    pub(crate) instance: String,
    pub(crate) own_limits: bool,
}

/// The running peas of a server.
#[derive(Default)]
pub(crate) struct PeaIndex(Mutex<HashMap<ProcessId, Vec<Seat>>>);

impl PeaIndex {
    /// A pea runs.
    pub(crate) fn add(&self, id: ProcessId, seat: Seat) {
        lock(&self.0).entry(id).or_default().push(seat);
    }

    /// It has ended.
    pub(crate) fn remove(&self, id: &ProcessId, instance: &str) {
        let mut index = lock(&self.0);
        if let Some(seats) = index.get_mut(id) {
            seats.retain(|seat| seat.instance != instance);
            if seats.is_empty() {
                index.remove(id);
            }
        }
    }

    /// The one that was started last under an id.
    pub(crate) fn find(&self, id: &ProcessId) -> Option<Seat> {
        lock(&self.0).get(id)?.last().cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_id_may_be_of_several_containers() {
        let index = PeaIndex::default();
        let id: ProcessId = "probe".parse().unwrap();
        for instance in ["a", "b"] {
            let seat = Seat {
                container: Weak::new(),
                instance: instance.to_owned(),
                own_limits: false,
            };
            index.add(id.clone(), seat);
        }
        assert_eq!(index.find(&id).unwrap().instance, "b");
        index.remove(&id, "b");
        assert_eq!(index.find(&id).unwrap().instance, "a");
        index.remove(&id, "a");
        index.remove(&id, "a");
        assert!(index.find(&id).is_none());
    }
}
