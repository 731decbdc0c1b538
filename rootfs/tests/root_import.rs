//! Imports: what is done once, what is told, what is refused, and what is left when they fail.

#![allow(clippy::unwrap_used, reason = "only for tests")]

mod support;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use garden_rootfs::{
    Digest, Error, Image, ImageSource, ImportOptions, Progress, Role, Rule, Stage, Store,
};
use support::{Layout, Place, Tar, gzip, names, read, stat};

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A tar whose bytes do not compress to nothing.
fn some_tar(number: u8, bytes: usize) -> Vec<u8> {
    let mut state = u32::from(number) + 1;
    let mut content = String::with_capacity(bytes);
    while content.len() < bytes {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        content.push(char::from(b'a' + (state >> 24) as u8 % 26));
    }
    let tar = Tar::default().dir(&format!("d{number}"), 0o755, (0, 0));
    tar.file(&format!("d{number}/file"), &content).done()
}

/// An image of this many layers; the last one depends on those below it.
fn some_image(path: &Path, layers: u8) -> ImageSource {
    let mut layout = Layout::new(path.to_owned());
    for number in 0..layers {
        let tar = some_tar(number, 50_000);
        layout = layout.packed(&tar, &gzip(&tar), GZIP);
    }
    layout
        .layer(&Tar::default().file("d0/more", "x").done())
        .done()
}

/// Imports, and gives what was told.
fn told(store: &Store, source: &ImageSource) -> (Image, Vec<Progress>) {
    let events = Mutex::new(Vec::new());
    let tell = |event| events.lock().unwrap().push(event);
    let mut options = ImportOptions::default();
    options.progress = Some(&tell);
    let image = store.import_with(source, &options).unwrap();
    (image, events.into_inner().unwrap())
}

/// How often each layer reached a stage.
fn reached(events: &[Progress], wanted: Stage) -> BTreeMap<usize, usize> {
    let mut times = BTreeMap::new();
    for event in events {
        if let Progress::Layer { index, stage, .. } = event
            && *stage == wanted
        {
            *times.entry(*index).or_default() += 1;
        }
    }
    times
}

fn rule(result: Result<Image, Error>) -> Rule {
    match result.unwrap_err() {
        Error::ImageMalformed { rule, .. } => rule,
        other => panic!("{other:?}"),
    }
}

/// Nothing half-made, and no lock.
fn assert_nothing_left(place: &Place, layers: usize) {
    place.assert_nothing_left(layers);
    let locks = std::fs::read_dir(place.path("store/locks")).unwrap();
    assert_eq!(locks.count(), 0);
}

#[test]
fn progress_is_told_from_the_first_to_the_last_byte() {
    let Some(place) = Place::new("progress_is_told_from_the_first_to_the_last_byte") else {
        return;
    };
    let source = some_image(&place.path("layout"), 3);
    let (image, events) = told(place.store(), &source);
    assert_eq!(events.first(), Some(&Progress::Layers { total: 4 }));
    assert_eq!(events.last(), Some(&Progress::Done));
    let once: BTreeMap<_, _> = (0..4).map(|index| (index, 1)).collect();
    assert_eq!(reached(&events, Stage::Waiting), once);
    assert_eq!(reached(&events, Stage::Done), once);
    for event in &events {
        if let Progress::Layer {
            stage: Stage::Done,
            bytes,
            of,
            ..
        } = event
        {
            assert!(*bytes > 0 && bytes == of);
        }
    }
    let (again, events) = told(place.store(), &source);
    assert_eq!(again, image);
    assert_eq!(reached(&events, Stage::Cached), once);
    assert_eq!(events.len(), 6);
    assert_nothing_left(&place, 4);
}

#[test]
fn racing_threads_import_each_layer_once() {
    let Some(place) = Place::new("racing_threads_import_each_layer_once") else {
        return;
    };
    let source = some_image(&place.path("layout"), 4);
    let all: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..20)
            .map(|_| scope.spawn(|| told(place.store(), &source)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    let events: Vec<_> = all.iter().flat_map(|(_, events)| events.clone()).collect();
    let once: BTreeMap<_, _> = (0..5).map(|index| (index, 1)).collect();
    assert_eq!(reached(&events, Stage::Done), once);
    assert!(all.iter().all(|(image, _)| *image == all[0].0));
    assert_nothing_left(&place, 5);
}

/// Where a child of the next test finds its store.
const CHILD: &str = "GARDEN_TEST_IMPORT_IN";

/// Run by the next test as a process of its own.
#[test]
fn a_process_that_imports() {
    let Ok(dir) = std::env::var(CHILD) else {
        return;
    };
    let dir = Path::new(&dir);
    let mut options = Place::options(dir);
    options.role = Role::Tool;
    let store = Store::open(&options).unwrap();
    let source = ImageSource::parse(&format!("oci://{}/layout", dir.display())).unwrap();
    println!("ready");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !dir.join("go").exists() {
        assert!(Instant::now() < deadline, "nobody said go");
        std::thread::sleep(Duration::from_millis(1));
    }
    let (image, events) = told(&store, &source);
    for layer in &image.layers {
        println!("key {}", layer.key);
    }
    for index in reached(&events, Stage::Done).keys() {
        println!("made {index}");
    }
}

#[test]
fn racing_processes_import_each_layer_once() {
    let Some(place) = Place::new("racing_processes_import_each_layer_once") else {
        return;
    };
    some_image(&place.path("layout"), 4);
    let this = std::env::current_exe().unwrap();
    let children: Vec<_> = (0..20)
        .map(|_| {
            Command::new(&this)
                .args(["--exact", "a_process_that_imports", "--nocapture"])
                .env(CHILD, place.dir.path())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    std::fs::write(place.path("go"), "").unwrap();
    let (mut made, mut keys) = (Vec::<usize>::new(), Vec::new());
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        made.extend(
            text.lines()
                .filter_map(|line| line.strip_prefix("made ")?.parse::<usize>().ok()),
        );
        let of_child = text.lines().filter_map(|line| line.strip_prefix("key "));
        keys.push(of_child.map(str::to_owned).collect::<Vec<_>>());
    }
    made.sort_unstable();
    assert_eq!(made, [0, 1, 2, 3, 4]);
    assert!(keys[0].len() == 5 && keys.iter().all(|of_child| *of_child == keys[0]));
    // What they made is in the store of the server beside them, and so is what they left.
    place.store().maintain().unwrap();
    assert_nothing_left(&place, 5);
}

#[test]
fn what_is_on_the_disk_counts() {
    let Some(place) = Place::new("what_is_on_the_disk_counts") else {
        return;
    };
    let mut options = Place::options(place.dir.path());
    options.role = Role::Tool;
    let tool = Store::open(&options).unwrap();
    let source = some_image(&place.path("layout"), 2);
    let image = place.store().import(&source).unwrap();
    // Another process's layers are found without the files that they were made from.
    for layer in std::fs::read_dir(place.path("layout/blobs/sha256")).unwrap() {
        let path = layer.unwrap().path();
        if std::fs::metadata(&path).unwrap().len() > 10_000 {
            std::fs::remove_file(path).unwrap();
        }
    }
    assert_eq!(tool.import(&source).unwrap(), image);
    // A layer that went away is noticed, and made again.
    let gone = place.tree(&image.layers[1].key);
    std::fs::remove_dir_all(gone.parent().unwrap()).unwrap();
    let error = place.store().import(&source).unwrap_err();
    assert!(matches!(error, Error::ImageNotFound { .. }), "{error}");
    some_image(&place.path("layout"), 2);
    assert_eq!(place.store().import(&source).unwrap(), image);
    assert_eq!(tool.import(&source).unwrap(), image);
    assert_nothing_left(&place, 3);
}

#[test]
fn a_tag_that_moved_is_another_image() {
    let Some(place) = Place::new("a_tag_that_moved_is_another_image") else {
        return;
    };
    let (one, two) = (some_tar(1, 1000), some_tar(2, 1000));
    let path = place.path("layout");
    let source = Layout::new(path.clone()).layer(&one).done();
    let first = place.store().import(&source).unwrap();
    assert_eq!(place.store().import(&source).unwrap(), first);
    let moved = Layout::new(path.clone()).layer(&one).layer(&two).done();
    // What both have is not read again.
    std::fs::remove_file(path.join("blobs/sha256").join(Digest::of(&one).hex())).unwrap();
    let second = place.store().import(&moved).unwrap();
    assert_ne!(second.id, first.id);
    assert_eq!(second.layers[0], first.layers[0]);
    assert_eq!(second.layers.len(), 2);
    assert_nothing_left(&place, 2);
}

#[test]
fn an_import_that_fails_leaves_nothing() {
    let Some(place) = Place::new("an_import_that_fails_leaves_nothing") else {
        return;
    };
    let bad = some_tar(99, 50_000);
    let packed = gzip(&bad);
    let mut flipped = packed.clone();
    flipped[20_000] ^= 1;
    let blobs = [
        packed[..packed.len() - 100].to_vec(),
        [&packed[..], b"garbage"].concat(),
        flipped,
        b"not a tar, and long enough to have a header block".repeat(20),
    ];
    let good: Vec<_> = (0..4).map(|number| some_tar(number, 100_000)).collect();
    let good: Vec<_> = good.iter().map(|tar| (tar, gzip(tar))).collect();
    for (number, blob) in blobs.iter().enumerate() {
        let mut layout = Layout::new(place.path(&format!("layout{number}")));
        for (tar, packed) in &good {
            layout = layout.packed(tar, packed, GZIP);
        }
        // The blob is what its digest says; what is in it is wrong.
        let source = layout.packed(&bad, blob, GZIP).done();
        let rule = rule(place.store().import(&source));
        assert!(
            matches!(rule, Rule::Stream(_) | Rule::Header(_)),
            "{rule:?}"
        );
        assert!(place.store().list_images().unwrap().is_empty());
        // Layers that were whole by then may stay.
        let whole = place.store().list_layers();
        assert!(whole.iter().all(|layer| layer.diff_id != Digest::of(&bad)));
        assert_nothing_left(&place, whole.len());
    }
    let tiny = Tar::default().done();
    let many = (0..=500).fold(Layout::new(place.path("many")), |layout, _| {
        layout.layer(&tiny)
    });
    let rule = rule(place.store().import(&many.done()));
    assert!(matches!(rule, Rule::Layers(501)), "{rule:?}");
}

#[test]
fn a_quota_ends_an_import() {
    let Some(place) = Place::new("a_quota_ends_an_import") else {
        return;
    };
    let tars: Vec<_> = (0..3).map(|number| some_tar(number, 30_000)).collect();
    let layout = Layout::new(place.path("layout"));
    let source = tars
        .iter()
        .fold(layout, |layout, tar| layout.packed(tar, &gzip(tar), GZIP))
        .done();
    let unpacked: usize = tars.iter().map(Vec::len).sum();
    let packed: usize = tars.iter().map(|tar| gzip(tar).len()).sum();
    let with = |most| {
        let mut options = ImportOptions::default();
        options.most_bytes = Some(most as u64);
        place.store().import_with(&source, &options)
    };
    let told = |result| match rule(result) {
        Rule::Quota { packed, .. } => packed,
        other => panic!("{other:?}"),
    };
    assert_eq!(told(with(packed - 1)), Some(packed as u64));
    assert_eq!(told(with(unpacked - 1)), None);
    assert!(place.store().list_images().unwrap().is_empty());
    assert_nothing_left(&place, place.store().list_layers().len());
    // All that is new fits; what is there already does not count.
    with(unpacked).unwrap();
    with(0).unwrap();
    // A single tar, and a directory.
    let path = place.path("one.tar");
    std::fs::write(&path, some_tar(7, 1000)).unwrap();
    let mut options = ImportOptions::default();
    options.most_bytes = Some(999);
    let alone = place
        .store()
        .import_with(&ImageSource::Path(path), &options);
    assert!(matches!(rule(alone), Rule::Quota { .. }));
}

/// An app as it is packed: its root, a directory, and a file with two names.
fn app() -> Tar {
    Tar::default()
        .dir("./", 0o750, (2000, 2000))
        .dir("./bin", 0o755, (2000, 2000))
        .file("./bin/app", "app")
        .hard_link("./bin/also", "./bin/app")
        .file("./.wh.default", "")
}

#[test]
fn a_layer_is_unpacked_beneath_its_base_directory() {
    let Some(place) = Place::new("a_layer_is_unpacked_beneath_its_base_directory") else {
        return;
    };
    let base = Tar::default()
        .dir("home", 0o711, (1, 2))
        .dir("home/vcap", 0o700, (3, 4))
        .file("home/vcap/default", "")
        .done();
    // Nothing about the directory: what it looks like comes from further below.
    let middle = Tar::default().file("etc/motd", "hello").done();
    let source = Layout::new(place.path("layout"))
        .layer(&base)
        .layer(&middle)
        .layer(&app().done())
        .beneath("/home/vcap/app/../app")
        .done();
    let error = place.store().import(&source).unwrap_err();
    assert!(matches!(error, Error::ImageMalformed { .. }), "{error}");
    let source = Layout::new(place.path("layout"))
        .layer(&base)
        .layer(&middle)
        .layer(&app().done())
        .beneath("/home/vcap")
        .done();
    let image = place.store().import(&source).unwrap();
    let tree = File::open(place.tree(&image.layers[2].key)).unwrap();
    let seen = |name| {
        let stat = stat(&tree, name).unwrap();
        (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid)
    };
    assert_eq!(names(&tree, "."), ["home"]);
    assert_eq!(seen("home"), (0o711, 1, 2));
    // The archive's own root says what the directory looks like.
    assert_eq!(seen("home/vcap"), (0o750, 2000, 2000));
    assert_eq!(names(&tree, "home/vcap"), ["bin", "default"]);
    assert_eq!(read(&tree, "home/vcap/bin/also"), "app");
    assert_eq!(stat(&tree, "home/vcap/bin/app").unwrap().st_nlink, 2);
    let hidden = stat(&tree, "home/vcap/default").unwrap();
    assert_eq!((hidden.st_mode & 0o170_000, hidden.st_rdev), (0o020_000, 0));

    // The same archive at another place is another layer.
    let elsewhere = Layout::new(place.path("elsewhere"))
        .layer(&base)
        .layer(&app().done())
        .beneath("home")
        .done();
    let other = place.store().import(&elsewhere).unwrap();
    assert_ne!(other.layers[1].key, image.layers[2].key);
    assert_eq!(other.layers[1].diff_id, image.layers[2].diff_id);
    let tree = File::open(place.tree(&other.layers[1].key)).unwrap();
    // Where there is nothing to hide, but could be.
    assert_eq!(names(&tree, "home"), ["bin", "default"]);
    assert_nothing_left(&place, 4);
}

#[test]
fn a_base_directory_must_be_there_and_stay_one() {
    let Some(place) = Place::new("a_base_directory_must_be_there_and_stay_one") else {
        return;
    };
    let base = Tar::default()
        .dir("home", 0o755, (0, 0))
        .symlink("link", "home")
        .done();
    let escaping = |tar: Tar| tar.done();
    for (number, (directory, tar)) in [
        ("home/nobody", app().done()),
        ("link", app().done()),
        ("home", escaping(Tar::default().symlink("./", "/etc"))),
        ("home", escaping(Tar::default().file("../x", ""))),
        ("home", escaping(Tar::default().hard_link("x", "link"))),
    ]
    .into_iter()
    .enumerate()
    {
        let source = Layout::new(place.path(&format!("layout{number}")))
            .layer(&base)
            .layer(&tar)
            .beneath(directory)
            .done();
        rule(place.store().import(&source));
    }
    assert_nothing_left(&place, 1);
}

/// A base image, an app, and the layout that Guardian writes for them.
fn guardians(place: &Place, name: &str, app: Digest, url: &str) -> ImageSource {
    let base = place.path("base.tar");
    let modified = std::fs::metadata(&base).unwrap().modified().unwrap();
    let since = modified.duration_since(std::time::UNIX_EPOCH).unwrap();
    let false_name = Digest::of(format!("{}-{}", base.display(), since.as_nanos()).as_bytes());
    let layout = Layout::new(place.path(name));
    let blob = layout.path.join("blobs/sha256").join(false_name.hex());
    if !blob.exists() {
        std::os::unix::fs::symlink(&base, blob).unwrap();
    }
    layout
        .claimed(false_name, "application/vnd.oci.image.layer.v1.tar")
        .claimed(app, GZIP)
        .says("urls", serde_json::json!([url]))
        .beneath("/home/vcap")
        .done()
}

fn write_base(place: &Place, text: &str) {
    let tar = Tar::default()
        .dir("home", 0o755, (0, 0))
        .dir("home/vcap", 0o755, (2000, 2000))
        .file("base", text);
    std::fs::write(place.path("new.tar"), tar.done()).unwrap();
    std::fs::rename(place.path("new.tar"), place.path("base.tar")).unwrap();
}

#[test]
fn guardians_own_layouts_are_read_for_what_is_true() {
    let Some(place) = Place::new("guardians_own_layouts_are_read_for_what_is_true") else {
        return;
    };
    write_base(&place, "1");
    let packed = gzip(&app().done());
    let server = support::web::Web::start(vec![packed.clone(), gzip(&some_tar(1, 10))]);
    let source = guardians(&place, "one", Digest::of(&packed), &server.url(0));
    let mut options = ImportOptions::default();
    // Its claims are false, and who does not know that refuses it.
    place.store().import_with(&source, &options).unwrap_err();
    assert_nothing_left(&place, 0);
    options.unverified_layouts = true;
    let image = place.store().import_with(&source, &options).unwrap();
    assert_eq!(image.layers.len(), 2);
    assert_eq!(image.layers[1].diff_id, Digest::of(&app().done()));
    let tree = File::open(place.tree(&image.layers[1].key)).unwrap();
    assert_eq!(read(&tree, "home/vcap/bin/app"), "app");
    let requests = server.requests();
    // Again, for another container: nothing is fetched and nothing unpacked.
    let second = guardians(&place, "two", Digest::of(&packed), &server.url(0));
    let again = place.store().import_with(&second, &options).unwrap();
    assert_eq!(again.layers, image.layers);
    assert_eq!(server.requests(), requests);
    // What the server sends under another app's digest is not that app.
    let wrong = guardians(&place, "three", Digest::of(&packed), &server.url(1));
    for record in std::fs::read_dir(place.path("store/images")).unwrap() {
        std::fs::remove_file(record.unwrap().path()).unwrap();
    }
    let key = place.tree(&image.layers[1].key);
    std::fs::remove_dir_all(key.parent().unwrap()).unwrap();
    let lie = rule(place.store().import_with(&wrong, &options));
    assert!(matches!(lie, Rule::Digest { .. }), "{lie:?}");
    // Another base under the same path is another base, and the app is the same.
    write_base(&place, "2");
    let other = guardians(&place, "four", Digest::of(&packed), &server.url(0));
    let other = place.store().import_with(&other, &options).unwrap();
    assert_ne!(other.layers[0], image.layers[0]);
    let tree = File::open(place.tree(&other.layers[0].key)).unwrap();
    assert_eq!(read(&tree, "base"), "2");
    assert_nothing_left(&place, place.store().list_layers().len());
}

#[test]
fn an_app_above_a_preloaded_image_is_fetched_once() {
    let Some(place) = Place::new("an_app_above_a_preloaded_image_is_fetched_once") else {
        return;
    };
    write_base(&place, "1");
    let packed = gzip(&app().done());
    let file = place.path("app.tgz");
    std::fs::write(&file, &packed).unwrap();
    let server = support::web::Web::start(vec![packed.clone()]);
    let source = |url: &str, path: &str, digest: Digest| {
        let text = format!(
            "preloaded+layer://{}?layer={url}&layer_path={path}&layer_digest={}",
            place.path("base.tar").display(),
            digest.hex()
        );
        ImageSource::parse(&text).unwrap()
    };
    let web = source(&server.url(0), "/home/vcap", Digest::of(&packed));
    let image = place.store().import(&web).unwrap();
    assert_eq!(image.layers.len(), 2);
    assert_eq!(server.requests(), 1);
    assert_eq!(place.store().import(&web).unwrap(), image);
    // From another place it is the same, and is not fetched at all.
    let local = source(
        &format!("file://{}", file.display()),
        "/home/vcap",
        Digest::of(&packed),
    );
    std::fs::rename(&file, place.path("away")).unwrap();
    assert_eq!(place.store().import(&local).unwrap().layers, image.layers);
    // Nor above another base that looks the same on the way to it.
    write_base(&place, "2");
    let above = place.store().import(&web).unwrap();
    assert_ne!(above.layers[0], image.layers[0]);
    assert_eq!(above.layers[1], image.layers[1]);
    assert_eq!(server.requests(), 1);
    // Beneath another directory it is another layer.
    std::fs::rename(place.path("away"), &file).unwrap();
    let elsewhere = source(
        &format!("file://{}", file.display()),
        "/home",
        Digest::of(&packed),
    );
    let elsewhere = place.store().import(&elsewhere).unwrap();
    assert_ne!(elsewhere.layers[1], image.layers[1]);
    // A wrong digest leaves nothing.
    let layers = place.store().list_layers().len();
    let wrong = source(
        &format!("file://{}", file.display()),
        "/home/vcap",
        Digest::of(b"x"),
    );
    assert!(matches!(
        rule(place.store().import(&wrong)),
        Rule::Digest { .. }
    ));
    assert_nothing_left(&place, layers);
}

#[test]
fn an_image_may_have_hundreds_of_layers_that_depend_on_each_other() {
    let test = "an_image_may_have_hundreds_of_layers_that_depend_on_each_other";
    let Some(place) = Place::new(test) else {
        return;
    };
    // The owner of `a` is known only from the lowest, so each looks at all below it.
    let mut layout =
        Layout::new(place.path("layout")).layer(&Tar::default().dir("a", 0o700, (7, 7)).done());
    for number in 1..400 {
        layout = layout.layer(&Tar::default().file(&format!("a/{number}"), "").done());
    }
    let image = place.store().import(&layout.done()).unwrap();
    assert_eq!(image.layers.len(), 400);
    let tree = File::open(place.tree(&image.layers[399].key)).unwrap();
    assert_eq!(stat(&tree, "a").unwrap().st_uid, 7);
    assert_nothing_left(&place, 400);
}

#[test]
fn an_error_waits_for_no_server() {
    let Some(place) = Place::new("an_error_waits_for_no_server") else {
        return;
    };
    let mut options = Place::options(&place.path("other"));
    let ever = Duration::from_secs(24 * 60 * 60);
    options.registry.timeouts.answer = ever;
    options.registry.timeouts.idle = ever;
    let store = Store::open(&options).unwrap();
    // Connections are taken by the kernel, and nobody answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/layer", silent.local_addr().unwrap());
    let tar = Tar::default().file("a", "").done();
    let source = Layout::new(place.path("layout"))
        .claimed(Digest::of(b"never"), GZIP)
        .says("urls", serde_json::json!([url]))
        .packed(&tar, &gzip(&tar)[..30], GZIP)
        .done();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _ = tell.send(store.import(&source));
    });
    let result = told.recv_timeout(Duration::from_secs(60)).unwrap();
    let rule = rule(result);
    assert!(matches!(rule, Rule::Stream(_)), "{rule:?}");
}
