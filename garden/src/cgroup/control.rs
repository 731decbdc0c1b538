//! What is done with a group that exists: limits, their changes, what it uses.
//!
//! Called by the manager and by metrics, on worker threads. Making and removing groups is in the
//! module above; how a value is written is in `limit`.

use std::path::PathBuf;

use super::limit::{self, Order, When, Which};
use super::weight::cpu_quota_us;
use super::{Alarm, CgroupError, Cgroups, Entry, Hierarchy, Place, Usage, files, usage};
use crate::model::{IoLimits, Limits};

/// With fewer processes than this, those that set another up may find no room.
const FEW_PIDS: u64 = 16;
/// With less memory than this, in bytes, they may not either.
const LITTLE_MEMORY: u64 = 32 << 20;

impl Cgroups {
    pub(super) fn order<'a>(&'a self, limits: &'a Limits, when: When) -> Order<'a> {
        Order {
            limits,
            before: limits,
            policy: &self.policy,
            when,
            which: Which::Set,
        }
    }

    /// How a process comes into a v2 group that has all of these limits upon it.
    pub(super) fn entry(&self, limits: &[&Limits]) -> Entry {
        let tight = |limits: &&&Limits| {
            cpu_quota_us(limits, self.policy.cpu_quota_per_share).is_some()
                || limits.pids.is_some_and(|pids| pids < FEW_PIDS)
                || limits
                    .memory_bytes
                    .is_some_and(|bytes| bytes < LITTLE_MEMORY)
        };
        if limits.iter().any(|limits| tight(&limits)) {
            Entry::Joined
        } else {
            Entry::Born
        }
    }

    /// Whether [`Cgroups::complete`] has anything to do.
    pub fn is_incomplete(&self, place: &Place<'_>, limits: &Limits) -> bool {
        let unified = |controller| {
            let unified = self.hierarchies.unified.as_ref();
            unified.is_some_and(|unified| unified.has(controller))
        };
        let pids = limits.pids.is_some() && unified("pids");
        match place {
            Place::Container(_) => {
                pids || limits.cpu_shares.is_some()
                    || limits.cpu_millis.is_some()
                    || limits.memory_bytes.is_some() && unified("memory")
                    || limits.io.or(self.policy.io) != IoLimits::default() && unified("io")
            }
            Place::Nested { .. } | Place::Beside(_) => pids,
        }
    }

    /// Writes the limits that would have slowed the set-up, or been counted against it, when the
    /// group's first program runs.
    ///
    /// # Errors
    /// The kernel's.
    pub fn complete(&self, place: &Place<'_>, limits: &Limits) -> Result<(), CgroupError> {
        let relative = self.relative(place);
        let order = self.order(limits, When::Final);
        for hierarchy in self.hierarchies.per_group() {
            let path = hierarchy.path.join(&relative);
            match place {
                Place::Container(_) => {
                    if hierarchy.unified {
                        limit::write(hierarchy, &path, &order)?;
                    }
                    limit::write_cpu(hierarchy, &path, &order)?;
                }
                Place::Nested { .. } | Place::Beside(_) => {
                    let pids = Limits {
                        pids: limits.pids.filter(|_| hierarchy.unified),
                        ..Limits::default()
                    };
                    let order = self.order(&pids, When::Final);
                    limit::write(hierarchy, &path, &order)?;
                }
            }
        }
        Ok(())
    }

    /// Refuses limits that cannot be set.
    ///
    /// # Errors
    /// [`CgroupError::OutOfRange`], [`CgroupError::NoController`].
    pub fn check(&self, limits: &Limits) -> Result<(), CgroupError> {
        limit::check(limits)?;
        limit::unsupported(limits, |controller| self.hierarchies.has(controller))
    }

    /// Gives a group whose processes run other limits. When one of them is refused, those that
    /// were written before it are taken back.
    ///
    /// # Errors
    /// The kernel's; [`CgroupError::InUse`] for memory that cannot be given up.
    pub fn change(
        &self,
        place: &Place<'_>,
        before: &Limits,
        limits: &Limits,
    ) -> Result<(), CgroupError> {
        self.check(limits)?;
        let changed = self.write_changes(place, before, limits);
        if changed.is_err() {
            // As far as it goes: what fails here fails as it did before.
            let _ = self.write_changes(place, limits, before);
        }
        changed
    }

    /// Writes all limits of a group, for when nobody knows which of them it has.
    ///
    /// # Errors
    /// As [`Cgroups::change`].
    pub fn rewrite(&self, place: &Place<'_>, limits: &Limits) -> Result<(), CgroupError> {
        let order = Order {
            which: Which::All,
            ..self.order(limits, When::Final)
        };
        self.write_all(place, &order)
    }

    fn write_changes(
        &self,
        place: &Place<'_>,
        before: &Limits,
        limits: &Limits,
    ) -> Result<(), CgroupError> {
        let order = Order {
            before,
            which: Which::Changed,
            ..self.order(limits, When::Final)
        };
        self.write_all(place, &order)
    }

    fn write_all(&self, place: &Place<'_>, order: &Order<'_>) -> Result<(), CgroupError> {
        let relative = self.relative(place);
        for hierarchy in self.hierarchies.per_group() {
            let path = hierarchy.path.join(&relative);
            limit::write(hierarchy, &path, order)?;
            limit::write_cpu(hierarchy, &path, order)?;
        }
        Ok(())
    }

    /// Writes a share of the CPU that is not the one of the limits: for throttling.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_shares(&self, place: &Place<'_>, shares: Option<u64>) -> Result<(), CgroupError> {
        let relative = self.relative(place);
        for hierarchy in self.hierarchies.per_group().filter(|h| h.has("cpu")) {
            limit::set_shares(hierarchy, &hierarchy.path.join(&relative), shares)?;
        }
        Ok(())
    }

    /// The limits of a group as the kernel has them: file and content.
    pub fn read_back(&self, place: &Place<'_>) -> Vec<(String, String)> {
        let relative = self.relative(place);
        self.hierarchies
            .per_group()
            .flat_map(|hierarchy| limit::read_back(hierarchy, &hierarchy.path.join(&relative)))
            .collect()
    }

    /// What a group uses, with what is below it.
    pub fn usage(&self, place: &Place<'_>) -> Usage {
        let relative = self.relative(place);
        let mut usage = Usage::default();
        for hierarchy in self.hierarchies.per_group() {
            usage::add(&mut usage, hierarchy, &hierarchy.path.join(&relative));
        }
        usage
    }

    /// Whether the host limits the CPU by v2's weights.
    pub fn has_weights(&self) -> bool {
        let unified = self.hierarchies.unified.as_ref();
        unified.is_some_and(|unified| unified.has("cpu"))
    }

    fn memory(&self) -> Option<&Hierarchy> {
        self.hierarchies.per_group().find(|h| h.has("memory"))
    }

    /// Arms an alarm for a group that runs out of memory; `None` where nothing counts memory.
    ///
    /// # Errors
    /// The kernel's.
    pub fn alarm(&self, place: &Place<'_>) -> Result<Option<Alarm>, CgroupError> {
        let relative = self.relative(place);
        self.memory()
            .map(|memory| Alarm::arm(memory, &memory.path.join(relative)))
            .transpose()
    }

    /// How often the kernel has killed for want of memory in a group: in the group itself under
    /// the empty name, and on v1, which does not add them up, in those below under theirs.
    pub fn oom_kills(&self, place: &Place<'_>) -> Vec<(String, u64)> {
        let Some(memory) = self.memory() else {
            return Vec::new();
        };
        let path = memory.path.join(self.relative(place));
        let below = if memory.unified {
            Vec::new()
        } else {
            files::children(&path)
        };
        std::iter::once(String::new())
            .chain(below)
            .filter_map(|name| {
                let kills = usage::oom_kills(memory, &path.join(&name))?;
                Some((name, kills))
            })
            .collect()
    }

    /// Whether there is nothing but cgroup v2.
    pub fn is_pure_v2(&self) -> bool {
        self.hierarchies.unified.is_some() && self.hierarchies.v1.is_empty()
    }

    /// The directories that show a group's limits from inside: for each hierarchy the name of its
    /// place below `/sys/fs/cgroup` (empty on pure v2, where it is that place) and its path.
    pub fn views(&self, place: &Place<'_>) -> Vec<(String, PathBuf)> {
        let relative = self.relative(place);
        if let (Some(unified), true) = (&self.hierarchies.unified, self.is_pure_v2()) {
            return vec![(String::new(), unified.path.join(relative))];
        }
        let v1 = self.hierarchies.per_group().filter(|h| !h.unified);
        v1.flat_map(|hierarchy| {
            let path = hierarchy.path.join(&relative);
            let of_each = move |controller: &String| (controller.clone(), path.clone());
            hierarchy.controllers.iter().map(of_each)
        })
        .collect()
    }
}
