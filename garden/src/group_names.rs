//! Who has which cgroup of a container, by name.
//!
//! A container's cgroup is named like its handle, so that a person finds it, and handles are used
//! again. Two things that work by name must not meet there: a new container of a handle, and what
//! is still being taken away of an earlier one, perhaps by a job that an earlier server left. So
//! every name has one owner, an instance; instances are never used twice.
//!
//! Claimed by creates and starts before the group is there, and given back when the teardown of its
//! owner is done. The stages of teardown ask before they touch a group.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Mutex;

use crate::services::lock;

/// The owners of all names.
#[derive(Debug, Default)]
pub(crate) struct GroupNames(Mutex<HashMap<String, String>>);

impl GroupNames {
    /// Claims a name; `false` when another instance has it.
    pub(crate) fn claim(&self, name: &str, instance: &str) -> bool {
        match lock(&self.0).entry(name.to_owned()) {
            Entry::Occupied(taken) => taken.get() == instance,
            Entry::Vacant(free) => {
                free.insert(instance.to_owned());
                true
            }
        }
    }

    /// Whether another instance has this name: then whatever is there is not this instance's any
    /// more. Of a pea's group, `name` is its own or its container's.
    pub(crate) fn is_of_another(&self, name: &str, instance: &str) -> bool {
        lock(&self.0)
            .get(name)
            .is_some_and(|owner| owner != instance)
    }

    /// Gives all names of an instance back.
    pub(crate) fn release(&self, instance: &str) {
        lock(&self.0).retain(|_, owner| owner != instance);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_owner_until_it_is_given_back() {
        let names = GroupNames::default();
        assert!(names.claim("web", "first"));
        assert!(names.claim("web", "first"), "a job that is taken up again");
        assert!(!names.claim("web", "second"));
        assert!(names.is_of_another("web", "second"));
        assert!(!names.is_of_another("web", "first"));
        assert!(!names.is_of_another("other", "first"));
        names.release("first");
        assert!(names.claim("web", "second"));
    }
}
