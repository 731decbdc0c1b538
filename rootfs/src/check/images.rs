//! Images: their records, and whether their layers are there.

use super::{Check, FindingKind, Repaired};
use crate::dirs;
use crate::error::{Result, Step};
use crate::store::Store;
use crate::store::hold;

impl Check<'_> {
    pub(super) fn images(&mut self) -> Result<()> {
        let store = self.store;
        let dirs = &store.inner.dirs;
        for name in dirs::names(&dirs.images).step(|| "list images".to_owned())? {
            let object = format!("images/{name}");
            let Some(image) = store.image(&name) else {
                if dirs::exists(&dirs.images, &name) {
                    let text = "it is no record of an image";
                    let kind = FindingKind::BadImage;
                    self.found(kind, object, text, || discard(store, &name));
                }
                continue;
            };
            self.report.images += 1;
            let layers = &store.inner.layers;
            let missing: Vec<_> = (image.layers.iter())
                .filter(|layer| {
                    let known = layers.get_anew(&layer.key);
                    known.is_none_or(|known| known.layer() != **layer)
                })
                .map(|layer| &*layer.key)
                .collect();
            if missing.is_empty() || !dirs::exists(&dirs.images, &name) {
                continue;
            }
            let text = format!(
                "the image {:?} lacks {} of its {} layers: {}",
                image.source,
                missing.len(),
                image.layers.len(),
                missing.join(", ")
            );
            let kind = FindingKind::IncompleteImage;
            self.found(kind, object, text, || discard(store, &name));
        }
        Ok(())
    }
}

fn discard(store: &Store, name: &str) -> Result<Repaired> {
    let step = || format!("take the record {name} away");
    let images = &store.inner.dirs.images;
    if let Ok(since) = hold::stamp(images, name).step(step)?
        && let Ok(_condemned) = hold::condemn(images, name, since).step(step)?
    {
        (store.inner.trash.discard(images, name, Vec::new())).step(step)?;
        let how = "taken away: the next use imports it again";
        return Ok(Repaired::Done(how.to_owned()));
    }
    let why = "it is being used: check again";
    Ok(Repaired::Left(why.to_owned()))
}
