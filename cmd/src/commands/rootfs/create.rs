//! `create`: a root filesystem from an image, and the part of a bundle that a runtime needs for it.
//!
//! The overlay is mounted on the host, where its path says, or, with `--without-mount`, described
//! as a mount for the runtime to make. What comes out is one line of JSON on standard output:
//!
//! ```text
//! {"ociVersion":"","process":{"user":{"uid":0,"gid":0},"env":["K=V"],"cwd":""},
//!  "root":{"path":"STORE/rootfs/ID/rootfs"},"mounts":[]}
//! ```
//!
//! With `--without-mount`, `mounts` has the overlay on `/` with one option string of absolute paths.
//! An option string cannot say that owners are mapped, so layers are then taken from a copy whose
//! owners are shifted, made once for each layer; and mount(2) takes no longer string than a page,
//! so an image with very many layers is refused here and not cut off there.

use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};

use garden_rootfs::{
    CreateRequest, Credentials, DiskLimit, ImageSource, ImportOptions, Progress, Scope, Stage,
    Store,
};
use serde::Serialize;

use super::args::Parsed;
use super::place::Namespace;
use super::{Context, Failure, expect_args, friendly, maintain, print};

#[derive(Serialize)]
struct Fragment {
    #[serde(rename = "ociVersion")]
    version: &'static str,
    process: Process,
    root: Root,
    mounts: Vec<Mount>,
}

#[derive(Serialize)]
struct Process {
    user: User,
    env: Vec<String>,
    cwd: &'static str,
}

#[derive(Serialize)]
struct User {
    uid: u32,
    gid: u32,
}

#[derive(Serialize)]
struct Root {
    path: String,
}

#[derive(Serialize)]
struct Mount {
    destination: &'static str,
    #[serde(rename = "type")]
    kind: &'static str,
    source: &'static str,
    options: [String; 1],
}

/// Makes it and prints it.
pub(super) fn run(context: &Context, flags: &Parsed) -> Result<(), Failure> {
    let [image, id] = expect_args(flags, "create [options] <image> <id>")?;
    if id.contains('/') {
        let text = format!("id `{id}` contains invalid characters: `/`");
        return Err(Failure::new(text));
    }
    let Some(namespace) = context.place.namespace()? else {
        let text = "Store path is not initialized. Please run init-store.";
        return Err(Failure::new(text));
    };
    if context.config.create.with_clean {
        maintain::check_log_file(context)?;
    }
    let made = make(context, flags, &namespace, &image, &id);
    // Also after a failure: what is short may be the disk.
    if context.config.create.with_clean {
        maintain::leave_with_clean(context);
    }
    let fragment = made?;
    let text = serde_json::to_string(&fragment).map_err(|error| Failure::new(error.to_string()))?;
    print(&format!("{text}\n")).map_err(|error| Failure::new(error.to_string()))
}

fn make(
    context: &Context,
    flags: &Parsed,
    namespace: &Namespace,
    image: &str,
    id: &str,
) -> Result<Fragment, Failure> {
    let create = &context.config.create;
    let source = ImageSource::parse(image)?;
    match &source {
        ImageSource::Path(path) if path.is_dir() => {
            let text = "invalid base image: directory provided instead of a tar file";
            return Err(Failure::new(text));
        }
        _ => {}
    }
    if context.place.directory(id).exists() {
        return Err(friendly::id_in_use(id));
    }
    let store = context.place.open(&context.config)?;
    let limit = u64::try_from(create.disk_limit_size_bytes)
        .ok()
        .filter(|limit| *limit > 0);
    let inclusive = !create.exclude_image_from_quota;
    let credentials = credentials(flags);
    // What is new is made durable by somebody else.
    let fetched = AtomicBool::new(false);
    let note = |progress| {
        if let Progress::Layer {
            stage: Stage::Done, ..
        } = progress
        {
            fetched.store(true, Ordering::Relaxed);
        }
    };
    let mut options = ImportOptions::default();
    options.credentials = credentials.as_ref();
    options.progress = Some(&note);
    options.most_bytes = limit.filter(|_| inclusive);
    options.unverified_layouts =
        create.skip_layer_validation && matches!(source, ImageSource::OciLayout { .. });
    let told = |error| friendly::of(&error, image, limit);
    let mapping = namespace.mapping().map_err(Failure::new)?;
    let image = store.import_with(&source, &options).map_err(told)?;
    let rootfs = store
        .create(&CreateRequest {
            id,
            image: &image,
            mapping: mapping.clone(),
            read_only: false,
            limit: DiskLimit {
                bytes: limit,
                inodes: None,
                scope: if inclusive {
                    Scope::Total
                } else {
                    Scope::Exclusive
                },
            },
        })
        .map_err(told)?;
    let group = namespace.root_group().map_err(Failure::new)?;
    let env = rootfs.config.env.clone();
    let shown = if create.without_mount {
        let described = store.describe(rootfs, &image, &mapping, group);
        described.map(|(path, options)| (path, Some(options)))
    } else {
        store.attach(&rootfs, group).map(|path| (path, None))
    };
    let (path, overlay) = shown.map_err(|error| undo(&store, id, error))?;
    if fetched.load(Ordering::Relaxed) {
        maintain::leave_to_another(context, Stdio::null());
    }
    tracing::info!(id, "created an image");
    Ok(Fragment {
        version: "",
        process: Process {
            user: User { uid: 0, gid: 0 },
            env,
            cwd: "",
        },
        root: Root {
            path: path.display().to_string(),
        },
        mounts: overlay
            .map(|options| Mount {
                destination: "/",
                kind: "overlay",
                source: "overlay",
                options: [options],
            })
            .into_iter()
            .collect(),
    })
}

/// Takes away what cannot be shown, so that the id is free for another try.
fn undo(store: &Store, id: &str, error: garden_rootfs::Error) -> Failure {
    if let Err(error) = store.detach(id).and_then(|_| store.destroy(id)) {
        tracing::error!(id, %error, "cannot take back a half-made image");
    }
    error.into()
}

/// By flags, as GrootFS's callers do it; or by the environment, which other users cannot read.
fn credentials(flags: &Parsed) -> Option<Credentials> {
    let value = |flag: &str, variable: &str| {
        let given = flags.text(flag).map(str::to_owned);
        given
            .or_else(|| std::env::var(variable).ok())
            .unwrap_or_default()
    };
    let username = value("username", "GROOTFS_USERNAME");
    let password = value("password", "GROOTFS_PASSWORD");
    let given = !(username.is_empty() && password.is_empty());
    given.then_some(Credentials { username, password })
}
