//! Layers: their records, and their files against their listings.

use super::{Check, FindingKind, Repaired};
use crate::collect::references;
use crate::dirs;
use crate::error::{Result, Step};
use crate::store::Store;
use crate::store::hold::{self, Kept, Stamp};
use crate::store::images::record_name;

/// How many damaged files of a layer are told by name.
const MOST_TOLD: usize = 5;

impl Check<'_> {
    pub(super) fn layers(&mut self) -> Result<()> {
        let dirs = &self.store.inner.dirs;
        for key in dirs::names(&dirs.layers).step(|| "list layers".to_owned())? {
            // Before anything else, to see whether it is still the same afterwards. One that is
            // in use now is looked at as well; it cannot be taken away.
            let since = hold::stamp(&dirs.layers, &key);
            let since = since.step(|| format!("look at the layer {key}"))?;
            if matches!(since, Err(Kept::Gone)) {
                continue;
            }
            self.layer(&key, since)?;
        }
        Ok(())
    }

    fn layer(&mut self, key: &str, since: std::result::Result<Stamp, Kept>) -> Result<()> {
        let (store, object) = (self.store, format!("layers/{key}"));
        let layers = &store.inner.layers;
        let (kind, text) = if let Some(record) = layers.get_anew(key) {
            self.report.layers += 1;
            self.report.bytes += record.size;
            let mut damage = damage(store, key);
            let now = hold::stamp(&store.inner.dirs.layers, key);
            if !damage.is_empty() && now.is_ok_and(|now| now != since) {
                // It was used meanwhile, or is another one of that name: that would tell nothing.
                damage = self::damage(store, key);
            }
            let Some(first) = damage.first() else {
                return Ok(());
            };
            let mut text = first.clone();
            for more in damage.iter().skip(1).take(MOST_TOLD - 1) {
                text += "; ";
                text += more;
            }
            if damage.len() > MOST_TOLD {
                text += &format!("; and {} more", damage.len() - MOST_TOLD);
            }
            (FindingKind::DamagedLayer, text)
        } else if layers.is_trusted(key) {
            // Of another version of this program: it has its own check.
            return Ok(());
        } else {
            let text = "it has no record that can be trusted: it is not used";
            (FindingKind::BadLayer, text.to_owned())
        };
        if !dirs::exists(&store.inner.dirs.layers, key) {
            // Collected while it was looked at.
            return Ok(());
        }
        self.found(kind, object, text, || discard(store, key, since));
        Ok(())
    }
}

/// What differs from the listing, in words.
fn damage(store: &Store, key: &str) -> Vec<String> {
    match store.inner.layers.verify(key) {
        Ok(damage) => damage.iter().map(ToString::to_string).collect(),
        Err(error) => vec![super::words(&error)],
    }
}

/// Puts a layer into the trash, with the images that are nothing without it. For that no image is
/// used, and no root filesystem needs it: see the head of the holds.
fn discard(store: &Store, key: &str, since: std::result::Result<Stamp, Kept>) -> Result<Repaired> {
    let step = || format!("take the layer {key} away");
    let left = |why: &str| Ok(Repaired::Left(why.to_owned()));
    let dirs = &store.inner.dirs;
    let mut images = Vec::new();
    for name in dirs::names(&dirs.images).step(step)? {
        let Some(image) = store.image(&name) else {
            continue;
        };
        if image.layers.iter().any(|layer| layer.key == key) {
            let Ok(since) = hold::stamp(&dirs.images, &name).step(step)? else {
                return left("an image with it is being used: check again");
            };
            let Ok(condemned) = hold::condemn(&dirs.images, &name, since).step(step)? else {
                return left("an image with it is being used: check again");
            };
            images.push((image.id, condemned));
        }
    }
    // After the images: whoever used them has written its record.
    let all = store.list()?;
    if let Some(users) = references::users(&all).get(key) {
        let users = users.join(", ");
        return Ok(Repaired::Left(format!(
            "root filesystems use it: destroy {users}, and check again"
        )));
    }
    let Ok(since) = since else {
        return left("it is being used: check again");
    };
    let Ok(_condemned) = hold::condemn(&dirs.layers, key, since).step(step)? else {
        return left("it is being used: check again");
    };
    for (id, _) in &images {
        let name = record_name(*id);
        (store.inner.trash.discard(&dirs.images, &name, Vec::new())).step(step)?;
    }
    (store.inner.trash.discard(&dirs.layers, key, Vec::new())).step(step)?;
    Ok(Repaired::Done(format!(
        "taken away with {} images: the next use imports it again",
        images.len()
    )))
}
