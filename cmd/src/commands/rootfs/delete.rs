//! `delete`: takes a root filesystem away, in the same time whatever was written to it.

use std::process::Stdio;

use super::args::Parsed;
use super::place::{Found, Place};
use super::{Context, Failure, maintain};

/// Deletes it. What is not there is deleted: Guardian asks every plugin about every container.
pub(super) fn run(context: &Context, flags: &Parsed) -> Result<(), Failure> {
    let word = match &flags.rest[..] {
        [] => return Err(Failure::new("id was not specified")),
        [word] if !word.is_empty() => word,
        [_] => return Err(Failure::new("id was not specified")),
        _ => {
            return Err(Failure::new(
                "invalid arguments - usage: delete <id|image path>",
            ));
        }
    };
    let id = match context.place.find(word) {
        Found::Id(id) => id,
        Found::Outside => return Err(Failure::harmless(Place::outside(word))),
    };
    let unknown = || Failure::harmless(format!("Image `{id}` not found. Skipping delete."));
    if !context.place.exists() {
        return Err(unknown());
    }
    let store = context.place.open(&context.config)?;
    if !store.contains(&id) {
        return Err(unknown());
    }
    let pin = store.detach(&id)?;
    if !store.destroy(&id)? {
        return Err(unknown());
    }
    // Where the mount is not volatile, its last descriptor costs a sync of the disk: whoever
    // removes the data closes it after that.
    maintain::leave_to_another(context, pin.map_or_else(Stdio::null, Stdio::from));
    tracing::info!(id, "deleted an image");
    super::print(&format!("Image {id} deleted\n")).map_err(|error| Failure::new(error.to_string()))
}
