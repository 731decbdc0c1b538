//! What the program as GrootFS mounts, or has mounted: who can see it, who can run in it, and stores
//! that are files.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use garden_integration::{
    DEADLINE, Grootfs, MAPPED, World, check, is_mount_point, ready, skip, wait_until,
};
use serde_json::{Value, json};

#[test]
fn without_a_mount_the_overlay_is_described() {
    check(|world| {
        let (groot, _) = ready(world, &[])?;
        let image = world.images()?.oci("layered")?;
        let fragment = groot.create(&["--without-mount"], &image, "a")?;
        let root = fragment["root"]["path"].as_str().context("no path")?;
        ensure!(
            !is_mount_point(Path::new(root))?,
            "it is mounted all the same"
        );
        let mount = &fragment["mounts"][0];
        ensure!(
            mount["destination"] == "/" && mount["type"] == "overlay",
            "{mount}"
        );
        ensure!(mount["source"] == "overlay", "{mount}");
        let options = mount["options"].as_array().context("no options")?;
        ensure!(options.len() == 1, "{mount}");
        let options = options[0].as_str().context("no text")?;
        let lower = format!("lowerdir={}/", groot.store_text());
        ensure!(options.starts_with(&lower), "{options}");
        let target = world.directory().join("target");
        fs::create_dir(&target)?;
        let status = Command::new("mount")
            .args(["-t", "overlay", "overlay", "-o", options])
            .arg(&target)
            .status()?;
        ensure!(status.success(), "mount refuses {options}");
        ensure!(fs::read_to_string(target.join("etc/second"))? == "second layer");
        ensure!(!target.join("etc/gone").exists());
        fs::write(target.join("written"), "x")?;
        ensure!(groot.store().join("rootfs/a/upper/written").exists());
        ensure!(Command::new("umount").arg(&target).status()?.success());
        groot.output(&["delete", "a"])?;
        groot.wait_until_cleared()
    });
}

#[test]
fn a_store_of_a_size_is_never_formatted_twice() {
    check(|world| {
        let systems = fs::read_to_string("/proc/filesystems")?;
        if !systems.contains("xfs") || Command::new("mkfs.xfs").arg("-V").output().is_err() {
            return skip("XFS, in the kernel and as mkfs.xfs");
        }
        let groot = world.grootfs()?;
        let image = world.images()?.tar("app")?;
        let size = (400_u64 << 20).to_string();
        let flags = ["--store-size-bytes", &size, "--with-direct-io"];
        groot.init(&flags)?;
        ensure!(is_mount_point(groot.store())?, "the store is not mounted");
        groot.init(&flags)?;
        let root = groot.create_mounted(&image, "a")?;
        fs::write(root.join("written"), "x")?;
        groot.output(&["delete", "a"])?;
        groot.wait_until_cleared()?;
        let unmount = || Command::new("umount").arg(groot.store()).status();
        wait_until("the store can be unmounted", DEADLINE, || {
            Ok(unmount()?.success())
        })?;
        groot.init(&flags)?;
        ensure!(groot.names("layers").len() == 1, "the layers are gone");
        groot.create_mounted(&image, "b")?;
        groot.output(&["delete", "b"])?;
        groot.wait_until_cleared()?;
        wait_until("the store can be unmounted", DEADLINE, || {
            Ok(unmount()?.success())
        })?;
        let backing = format!("{}.backing-store", groot.store_text());
        // A container that starts elsewhere has a copy of the mount for a moment: the file system
        // ends, and writes its last block, only after that.
        wait_until("the backing file is let go", DEADLINE, || {
            Ok(!is_behind_a_loop(&backing)?)
        })?;
        // A damaged store stays for whoever can repair it.
        let mut file = fs::OpenOptions::new().write(true).open(&backing)?;
        std::io::Write::write_all(&mut file, &[0xAA; 4096])?;
        drop(file);
        let outcome = groot.run(&[&["init-store"][..], &flags].concat())?;
        outcome.expect_code(1)?;
        ensure!(outcome.stdout.contains("left as it is"), "{outcome:?}");
        let start = fs::read(&backing)?;
        ensure!(start[..4096] == [0xAA; 4096], "it was formatted");
        groot.output(&["delete-store"])?;
        ensure!(
            Path::new(&backing).exists(),
            "the backing file went with the store"
        );
        Ok(())
    });
}

fn is_behind_a_loop(backing: &str) -> Result<bool> {
    for device in fs::read_dir("/sys/block")? {
        let file = device?.path().join("loop/backing_file");
        if fs::read_to_string(file).is_ok_and(|text| text.trim_end() == backing) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The bundle that Guardian would make of a fragment, as far as it matters here.
fn bundle(world: &World, name: &str, fragment: &Value, mapped: bool) -> Result<std::path::PathBuf> {
    let directory = world.directory().join(name);
    fs::create_dir(&directory)?;
    let mut mounts = fragment["mounts"].as_array().cloned().unwrap_or_default();
    for (place, kind) in [("/proc", "proc"), ("/dev", "tmpfs")] {
        mounts.push(json!({"destination": place, "type": kind, "source": kind}));
    }
    let mut namespaces = vec![json!({"type": "mount"}), json!({"type": "pid"})];
    let mut linux = json!({});
    if mapped {
        namespaces.push(json!({"type": "user"}));
        let map = json!([
            {"containerID": 0, "hostID": 4_294_967_294_u32, "size": 1},
            {"containerID": 1, "hostID": 1, "size": 4_294_967_293_u32},
        ]);
        linux["uidMappings"] = map.clone();
        linux["gidMappings"] = map;
    }
    linux["namespaces"] = namespaces.into();
    let script = "id -u; cat /etc/image; echo; echo made > /made; stat -c %u /made /bin/busybox";
    let config = json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/sh", "-c", script],
            "env": ["PATH=/bin"],
            "cwd": "/",
        },
        "root": fragment["root"],
        "mounts": mounts,
        "linux": linux,
    });
    fs::write(directory.join("config.json"), config.to_string())?;
    Ok(directory)
}

/// The OCI runtimes of this host.
fn runtimes() -> Vec<&'static str> {
    let has = |name: &&str| Command::new(name).arg("--version").output().is_ok();
    ["runc", "crun"].into_iter().filter(has).collect()
}

/// Runs a container with what was made, as stock Guardian would, and looks at it from both sides.
fn runs(world: &World, groot: &Grootfs, runtime: &str, way: &[&str], mapped: bool) -> Result<()> {
    let image = world.images()?.tar("app")?;
    let id = format!("{}-{runtime}-{}-{mapped}", world.tag(), way.len());
    let fragment = groot.create(way, &image, &id)?;
    let bundle = bundle(world, &id, &fragment, mapped)?;
    // crun refuses a host with both versions of cgroups: it is shown one of them. Runtimes start in
    // Guardian's mount namespace; this one is a copy of it.
    let script = "mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec \"$@\"";
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh", runtime, "--root"])
        .arg(world.directory().join("state"))
        .args(["run", "--bundle"])
        .arg(&bundle)
        .arg(&id)
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && said.lines().eq(["0", "app", "0", "0"]),
        "{runtime}, mapped {mapped}, {way:?}: {output:?}"
    );
    let made = groot.store().join("rootfs").join(&id).join("upper/made");
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(made)?);
    ensure!(owner == if mapped { 4_294_967_294 } else { 0 }, "{owner}");
    groot.output(&["delete", &id]).map(drop)
}

#[test]
fn stock_runtimes_run_what_it_makes() {
    check(|world| {
        let runtimes = runtimes();
        if runtimes.is_empty() {
            return skip("runc or crun");
        }
        for (mapped, flags) in [(false, &[][..]), (true, MAPPED)] {
            let groot = world.grootfs_in(if mapped { "mapped" } else { "plain" })?;
            groot.init(flags)?;
            for runtime in &runtimes {
                runs(world, &groot, runtime, &[], mapped)?;
                // Not by crun: 1.8 has no place for a mount on `/`.
                if !mapped && *runtime == "runc" {
                    runs(world, &groot, runtime, &["--without-mount"], mapped)?;
                }
            }
            groot.wait_until_cleared()?;
        }
        Ok(())
    });
}

#[test]
fn an_unprivileged_container_mounts_by_itself_where_that_is_safe() {
    check(|world| {
        let (groot, image) = ready(world, MAPPED)?;
        // Its layers would be open to whoever has got out of a container.
        let outcome = groot.run(&["create", "--without-mount", &image, "a"])?;
        outcome.expect_code(1)?;
        ensure!(outcome.stdout.contains("nosuid"), "{outcome:?}");
        ensure!(groot.names("rootfs").is_empty(), "it left something");
        if !runtimes().contains(&"runc") {
            return skip("runc");
        }
        let Some(sized) = sized(world, MAPPED)? else {
            return skip("XFS, in the kernel and as mkfs.xfs");
        };
        runs(world, &sized, "runc", &["--without-mount"], true)?;
        runs(world, &sized, "runc", &[], true)?;
        sized.wait_until_cleared()?;
        sized.output(&["delete-store"])?;
        Ok(())
    });
}

/// A store in a file, where the host can make one.
fn sized(world: &World, flags: &[&str]) -> Result<Option<Grootfs>> {
    let systems = fs::read_to_string("/proc/filesystems")?;
    if !systems.contains("xfs") || Command::new("mkfs.xfs").arg("-V").output().is_err() {
        return Ok(None);
    }
    let groot = world.grootfs_in("sized")?;
    let size = (400_u64 << 20).to_string();
    groot.init(&[&["--store-size-bytes", &size], flags].concat())?;
    Ok(Some(groot))
}

#[test]
fn nobody_else_can_look_into_a_store() {
    check(|world| {
        use std::os::unix::process::CommandExt;
        let (groot, image) = ready(world, MAPPED)?;
        let root = groot.create_mounted(&image, "a")?;
        let can_read = |uid: u32, gid: u32, path: &Path| {
            let status = Command::new("/bin/ls").arg(path).uid(uid).gid(gid).output();
            status.is_ok_and(|output| output.status.success())
        };
        let container_root = 4_294_967_294;
        ensure!(
            can_read(container_root, container_root, &root),
            "its root cannot get there"
        );
        for hidden in ["", "layers", "images", "trash", "tmp", "rootfs", "rootfs/a"] {
            let hidden = groot.store().join(hidden);
            ensure!(
                !can_read(container_root, container_root, &hidden),
                "{}",
                hidden.display()
            );
        }
        ensure!(!can_read(1000, 1000, &root), "anybody can get there");
        groot.output(&["delete", "a"])?;
        groot.wait_until_cleared()
    });
}
