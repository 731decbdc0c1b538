//! Root filesystems: their records, and what they are made of. None is ever taken away here: its
//! owner may be running in it.

use super::{Check, FindingKind, Repaired};
use crate::dirs;
use crate::error::{Result, Step};
use crate::rootfs::{RootfsInfo, State};

impl Check<'_> {
    pub(super) fn rootfs(&mut self) -> Result<()> {
        let dirs = &self.store.inner.dirs;
        for id in dirs::names(&dirs.rootfs).step(|| "list root filesystems".to_owned())? {
            let destroy = || {
                let why = format!("somebody may be using it: destroy {id:?} if not");
                Ok(Repaired::Left(why))
            };
            let object = format!("rootfs/{id}");
            match self.store.state(&id) {
                State::Gone | State::OfAnotherBoot => {}
                State::Unreadable => {
                    let text = "its record cannot be read";
                    self.found(FindingKind::BadRootfs, object, text, destroy);
                }
                State::Live(info) => {
                    self.report.rootfs += 1;
                    let missing = self.missing(&info);
                    if !missing.is_empty() && dirs::exists(&dirs.rootfs, &id) {
                        let text = format!("it lacks {}", missing.join(", "));
                        let kind = FindingKind::IncompleteRootfs;
                        self.found(kind, object, text, destroy);
                    }
                }
            }
        }
        Ok(())
    }

    fn missing(&self, info: &RootfsInfo) -> Vec<String> {
        let inner = &self.store.inner;
        let mut missing = Vec::new();
        let upper = format!("{}/upper", info.id);
        if !dirs::exists(&inner.dirs.rootfs, &upper) {
            missing.push("what was written to it".to_owned());
        }
        for key in &info.layers {
            if !inner.layers.is_trusted(key) {
                missing.push(format!("the layer {key}"));
            }
        }
        missing
    }
}
