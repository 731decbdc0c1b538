//! Images as they should be, and as an attacker would make them.

use std::fs::{self as std_fs, File};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use tempfile::TempDir;

use super::*;

const PASSWD_TEXT: &str = "root:x:0:0:root:/root:/bin/sh\n\
    # bob:x:1000:9:commented:/nowhere:\n\
    \n\
    alice:x:1000:1001:Alice,,,:/home/alice:/bin/sh\n\
    second:x:1000:7::/second:\n\
    1234:x:50:51::/numeric:\n\
    homeless:x:60:61::\n";
const GROUP_TEXT: &str = "root:x:0:root\n\
    wheel:x:10:root,alice\n\
    staff:x:20:bob,alice,carol\n\
    alices:x:30:alices,xalice\n\
    empty:x:40:\n\
    short:x:45\n";

fn image(passwd: Option<&str>, group: Option<&str>) -> TempDir {
    let root = tempfile::tempdir().expect("tempdir");
    std_fs::create_dir(root.path().join("etc")).expect("etc");
    for (name, text) in [("passwd", passwd), ("group", group)] {
        if let Some(text) = text {
            std_fs::write(root.path().join("etc").join(name), text).expect("write");
        }
    }
    root
}

fn find(root: &TempDir, user: &str) -> Result<User, UserError> {
    let root = File::open(root.path()).expect("root");
    resolve(root.as_fd(), user)
}

/// uid, gid, supplementary groups and home.
fn facts(root: &TempDir, user: &str) -> (u32, u32, Vec<u32>, String) {
    let found = find(root, user).expect(user);
    assert_eq!(found.name_as_given, user);
    (found.uid, found.gid, found.additional_gids, found.home)
}

#[test]
fn every_form_resolves_as_the_reference_says() {
    let root = image(Some(PASSWD_TEXT), Some(GROUP_TEXT));
    let home = |text: &str| text.to_owned();
    let table = [
        ("", (0, 0, vec![0, 10], home("/root"))),
        ("root", (0, 0, vec![0, 10], home("/root"))),
        ("0", (0, 0, vec![0, 10], home("/root"))),
        ("alice", (1000, 1001, vec![10, 20], home("/home/alice"))),
        ("1000", (1000, 1001, vec![10, 20], home("/home/alice"))),
        ("2000", (2000, 0, vec![], home("/"))),
        ("alice:staff", (1000, 20, vec![], home("/home/alice"))),
        ("alice:77", (1000, 77, vec![], home("/home/alice"))),
        ("1000:staff", (1000, 20, vec![], home("/home/alice"))),
        ("2000:3000", (2000, 3000, vec![], home("/"))),
        ("2000:20", (2000, 20, vec![], home("/"))),
        ("alice:", (1000, 1001, vec![10, 20], home("/home/alice"))),
        (":20", (0, 20, vec![], home("/root"))),
        ("homeless", (60, 61, vec![], home("/"))),
        ("alice:short", (1000, 45, vec![], home("/home/alice"))),
        ("alice:staff:more", (1000, 20, vec![], home("/home/alice"))),
    ];
    for (user, expected) in table {
        assert_eq!(facts(&root, user), expected, "{user:?}");
    }
}

#[test]
fn a_number_is_never_a_name() {
    let root = image(Some(PASSWD_TEXT), Some("55:x:66:\n"));
    assert_eq!(facts(&root, "1234"), (1234, 0, vec![], "/".to_owned()));
    assert_eq!(facts(&root, "1:55").1, 55);
}

#[test]
fn a_number_that_is_no_id_is_refused_as_such() {
    let root = image(Some(PASSWD_TEXT), Some(GROUP_TEXT));
    assert_eq!(facts(&root, "2147483647").0, HIGHEST_ID);
    for user in [
        "2147483648",
        "-1",
        "99999999999999999999",
        "0:-1",
        "alice:2147483648",
    ] {
        let error = find(&root, user).expect_err(user);
        assert!(matches!(error, UserError::OutOfRange(_)), "{user}: {error}");
    }
}

#[test]
fn unknown_names_have_the_texts_that_clients_quote() {
    let root = image(Some(PASSWD_TEXT), Some(GROUP_TEXT));
    let text = |user: &str| find(&root, user).expect_err(user).to_string();
    assert_eq!(
        text("bob"),
        "unable to find user bob: no matching entries in passwd file"
    );
    assert_eq!(
        text("alice:nobody"),
        "unable to find group nobody: no matching entries in group file"
    );
}

#[test]
fn without_files_there_are_numbers_and_root() {
    for root in [image(None, None), tempfile::tempdir().expect("tempdir")] {
        for user in ["", "root", "0"] {
            assert_eq!(facts(&root, user), (0, 0, vec![], "/".to_owned()));
        }
        assert_eq!(facts(&root, "7:8"), (7, 8, vec![], "/".to_owned()));
        assert!(matches!(
            find(&root, "alice"),
            Err(UserError::UnknownUser(_))
        ));
        assert!(matches!(
            find(&root, "7:staff"),
            Err(UserError::UnknownGroup(_))
        ));
    }
    let no_root = image(Some("alice:x:1:1::/:\n"), None);
    assert!(matches!(
        find(&no_root, "root"),
        Err(UserError::UnknownUser(_))
    ));
    assert_eq!(facts(&no_root, ""), (0, 0, vec![], "/".to_owned()));
}

#[test]
fn a_link_to_the_host_stays_inside_the_image() {
    let host = tempfile::tempdir().expect("tempdir");
    let secret = host.path().join("passwd");
    std_fs::write(&secret, "mallory:x:66:66::/host:\n").expect("write");
    for target in [
        secret.clone(),
        format!("../../../../../..{}", secret.display()).into(),
    ] {
        let root = image(None, None);
        symlink(&target, root.path().join("etc/passwd")).expect("link");
        assert!(matches!(
            find(&root, "mallory"),
            Err(UserError::UnknownUser(_))
        ));
        assert_eq!(facts(&root, "66").3, "/");
    }
    let root = image(None, None);
    symlink("/etc/shadow", root.path().join("etc/passwd")).expect("link");
    std_fs::write(root.path().join("etc/shadow"), "inside:x:5:6::/in:\n").expect("write");
    assert_eq!(facts(&root, "inside"), (5, 6, vec![], "/in".to_owned()));
}

#[test]
fn etc_itself_may_be_a_link_inside_the_image() {
    let root = tempfile::tempdir().expect("tempdir");
    std_fs::create_dir_all(root.path().join("private/etc")).expect("mkdir");
    std_fs::write(root.path().join("private/etc/passwd"), PASSWD_TEXT).expect("write");
    symlink("/private/etc", root.path().join("etc")).expect("link");
    assert_eq!(facts(&root, "alice").0, 1000);
}

#[test]
fn magic_links_and_loops_are_refused() {
    let root = image(None, None);
    symlink("passwd", root.path().join("etc/passwd")).expect("link");
    assert!(matches!(find(&root, "alice"), Err(UserError::Open { .. })));
    // A root with its own /proc: the link out of it is followed by a plain open.
    let host_root = File::open("/").expect("root");
    let magic = open_beneath(host_root.as_fd(), "proc/self/root/etc/passwd");
    assert_eq!(magic.expect_err("magic link"), Errno::LOOP);
}

#[test]
fn what_is_no_regular_file_is_neither_opened_nor_waited_for() {
    let root = image(None, None);
    let fifo = root.path().join("etc/passwd");
    let mode = Mode::RUSR | Mode::WUSR;
    mknodat(CWD, &fifo, FileType::Fifo, mode, 0).expect("fifo");
    assert!(matches!(
        find(&root, "0"),
        Err(UserError::NotRegular(PASSWD))
    ));
    std_fs::remove_file(&fifo).expect("remove");
    std_fs::create_dir(&fifo).expect("directory");
    assert!(matches!(
        find(&root, "alice"),
        Err(UserError::NotRegular(PASSWD))
    ));
}

#[test]
fn a_huge_file_is_refused_and_a_full_one_is_read() {
    let limit = usize::try_from(LARGEST_FILE).expect("fits");
    let entry = "last:x:9:9::/last:\n";
    let mut text = "#".repeat(limit - entry.len() - 1);
    text.push('\n');
    text.push_str(entry);
    let root = image(Some(&text), None);
    assert_eq!(facts(&root, "last").0, 9);
    text.push('\n');
    let root = image(Some(&text), None);
    assert!(matches!(
        find(&root, "last"),
        Err(UserError::TooLarge(PASSWD))
    ));
    let sparse = File::create(root.path().join("etc/passwd")).expect("create");
    sparse.set_len(1 << 40).expect("sparse");
    assert!(matches!(
        find(&root, "last"),
        Err(UserError::TooLarge(PASSWD))
    ));
}

#[test]
fn malformed_lines_are_no_entries_and_nobody_becomes_root_by_one() {
    let text = "a\0b:x:0:0::/:\n\
        nul:x:5:5::/ho\0me:\n\
        words:x:zero:zero::/:\n\
        empty:x:::/:\n\
        huge:x:4294967296:1::/:\n\
        wraps:x:4294967295:1::/:\n\
        negative:x:-1:1::/:\n\
        short:x:5\n\
        justname\n\
        ::::::\n\
        good:x:8:8::/good:/bin/sh\r\n";
    let root = image(Some(text), Some("bad:x:zero:good\ngood:x:88:good\n"));
    for user in [
        "nul", "words", "empty", "huge", "wraps", "negative", "short", "justname",
    ] {
        assert!(
            matches!(find(&root, user), Err(UserError::UnknownUser(_))),
            "{user}"
        );
    }
    assert_eq!(facts(&root, "good"), (8, 8, vec![88], "/good".to_owned()));
    let root = image(None, None);
    let bytes = b"\xff\xfe:x:1:1::/:\nfine:x:2:2::/:\n";
    std_fs::write(root.path().join("etc/passwd"), bytes).expect("write");
    assert_eq!(facts(&root, "fine").0, 2);
}

#[test]
fn root_a_detached_mount_and_the_root_of_a_process_do_as_well() {
    use rustix::mount::{OpenTreeFlags, open_tree};

    let root = image(Some(PASSWD_TEXT), Some(GROUP_TEXT));
    symlink("/etc/passwd", root.path().join("etc/passwd-")).expect("link");
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    match open_tree(CWD, root.path(), flags) {
        Ok(mount) => {
            let found = resolve(mount.as_fd(), "alice:staff").expect("found");
            assert_eq!((found.uid, found.gid), (1000, 20));
            assert!(open_beneath(mount.as_fd(), "etc/passwd-").is_ok());
        }
        Err(Errno::PERM | Errno::NOSYS) => println!(
            "SKIPPED root_a_detached_mount_and_the_root_of_a_process_do_as_well: no open_tree here"
        ),
        Err(errno) => panic!("open_tree: {errno}"),
    }
    let process = File::open("/proc/self/root").expect("root");
    assert_eq!(resolve(process.as_fd(), "0:0").expect("root").uid, 0);
}
