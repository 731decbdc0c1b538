//! What a program may do wrong while it is waited for.

use std::os::unix::fs::PermissionsExt as _;

use super::*;

/// A plugin that is this shell script.
pub(crate) fn script(directory: &Path, text: &str) -> PathBuf {
    let (text_at, path) = (directory.join("text"), directory.join("plugin"));
    std::fs::write(&text_at, text).unwrap();
    // Written by a child: what this process has open for writing, another thread's child may hold open
    // as well for a moment, and such a program cannot be run (ETXTBSY).
    let made = Command::new("/bin/sh")
        .args(["-c", "printf '#!/bin/sh\\n. \"%s\"\\n' \"$0\" >\"$1\""])
        .args([&text_at, &path])
        .status()
        .unwrap();
    assert!(made.success());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn run_script(text: &str, input: &[u8], timeout: Duration) -> Result<Answer, PluginError> {
    let arguments = ["-c".into(), text.into()];
    run(&Call {
        program: Path::new("/bin/sh"),
        arguments: &arguments,
        variables: &[("PLUGIN_TEST", "here".into())],
        input,
        timeout,
    })
}

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(300);

#[test]
fn input_output_and_end() {
    let large = vec![b'x'; 1 << 20];
    let answer = run_script("cat; echo $PLUGIN_TEST $PWD >&2; exit 3", &large, LONG).unwrap();
    assert_eq!(answer.stdout, large);
    assert_eq!(
        (answer.stderr.as_str(), answer.status_text().as_str()),
        ("here /", "exit status 3")
    );
    // Who does not read is heard all the same.
    let answer = run_script("echo answer", &large, LONG).unwrap();
    assert_eq!(answer.stdout, b"answer\n");
    let answer = run_script("kill -9 $$", b"", LONG).unwrap();
    assert_eq!(answer.status_text(), "signal: 9");
}

#[test]
fn one_that_hangs_is_killed_with_its_children() {
    let directory = tempfile::tempdir().unwrap();
    let pids = directory.path().join("pids");
    let text = format!(
        "echo why >&2; sleep 1000 & echo $! >{0}; echo $$ >>{0}; wait",
        pids.display()
    );
    let error = run_script(&text, b"", SHORT).unwrap_err();
    assert!(
        matches!(&error, PluginError::Timeout { stderr, .. } if stderr == "why"),
        "{error}"
    );
    assert!(error.to_string().ends_with("was killed: why"), "{error}");
    for pid in std::fs::read_to_string(pids).unwrap().lines() {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        // Gone, or dead and waiting for whoever inherits it.
        assert!(
            stat.is_err() || stat.unwrap().contains(") Z "),
            "{pid} lives on"
        );
    }
}

#[test]
fn a_helper_that_holds_the_output_is_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let pid = directory.path().join("pid");
    let text = format!("sleep 1000 & echo $! >{}; echo answer", pid.display());
    let answer = run_script(&text, b"", LONG).unwrap();
    assert_eq!(answer.stdout, b"answer\n");
    let pid = std::fs::read_to_string(pid)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

#[test]
fn output_is_bounded() {
    let error = run_script("yes", b"", LONG).unwrap_err();
    assert!(matches!(error, PluginError::TooMuch { .. }), "{error}");
    let answer = run_script(
        "head -c 9000 /dev/zero | tr '\\0' x >&2; echo end >&2",
        b"",
        LONG,
    );
    let stderr = answer.unwrap().stderr;
    assert!(stderr.len() <= TOLD && stderr.ends_with("xend"));
    // One that fills the wrong pipe forever has its time, not more.
    let error = run_script("yes >&2", b"", SHORT).unwrap_err();
    assert!(matches!(error, PluginError::Timeout { .. }), "{error}");
}

#[test]
fn one_that_is_not_there() {
    let call = Call {
        program: Path::new("/nowhere/plugin"),
        arguments: &[],
        variables: &[],
        input: b"",
        timeout: LONG,
    };
    let error = run(&call).unwrap_err();
    assert_eq!(error.to_string(), "cannot run the plugin /nowhere/plugin");
}
