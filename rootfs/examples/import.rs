//! Imports images into a store and tells how it goes:
//! `import [--insecure REGISTRY] STORE SOURCE...`.
//!
//! Shows the use of [`Store::import_with`] with progress; `ci/bars/import` measures with it.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it is a program")]

use std::process::ExitCode;
use std::time::Instant;

use garden_rootfs::{ImageSource, ImportOptions, Progress, Stage, Store, StoreOptions};

fn main() -> ExitCode {
    let mut insecure = Vec::new();
    let mut rest = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--insecure" => insecure.extend(arguments.next()),
            _ => rest.push(argument),
        }
    }
    let Some((store, sources)) = rest.split_first() else {
        eprintln!("usage: import [--insecure REGISTRY] STORE SOURCE...");
        return ExitCode::from(2);
    };
    let mut options = StoreOptions::new(store);
    options.registry.insecure = insecure;
    match import(&options, sources) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                text += &format!(": {error}");
                cause = error.source();
            }
            eprintln!("import: {text}");
            ExitCode::FAILURE
        }
    }
}

fn import(options: &StoreOptions, sources: &[String]) -> Result<(), Box<dyn std::error::Error>> {
    let store = Store::open(options)?;
    for text in sources {
        let source = ImageSource::parse(text)?;
        let since = Instant::now();
        let mut options = ImportOptions::default();
        options.progress = Some(&tell);
        let image = store.import_with(&source, &options)?;
        println!(
            "{text}: {} layers, {} bytes, {:.3} s",
            image.layers.len(),
            image.size(),
            since.elapsed().as_secs_f64(),
        );
    }
    Ok(())
}

fn tell(progress: Progress) {
    if let Progress::Layer {
        index,
        stage: stage @ (Stage::Done | Stage::Cached),
        bytes,
        ..
    } = progress
    {
        println!("layer {index}: {stage:?}, {bytes} bytes read");
    }
}
