//! Processes with a terminal: its size, whose it is, what becomes of input and output.

use anyhow::ensure;
use garden_integration::{App, check, lines_of};

#[test]
fn a_terminal_of_the_usual_size_belongs_to_its_user() {
    check(|world| {
        let app = App::start(world)?;
        let script = "stty size; stat -c %u $(tty); echo out; echo err >&2; echo own > $(tty)";
        let exec = [
            "exec", "app", "--tty", "-u", "vcap", "--", "sh", "-c", script,
        ];
        let pea = [
            "pea", "run", "app", "--image", &app.image, "-t", "-u", "vcap",
        ];
        let pea = [&pea[..], &["--", "sh", "-c", script]].concat();
        for args in [&exec[..], &pea] {
            let outcome = app.cli().run(args)?;
            outcome.expect_code(0)?;
            // One stream, its lines ended for a terminal.
            ensure!(outcome.stderr.is_empty(), "{outcome:?}");
            ensure!(outcome.stdout.contains("out\r\nerr\r\n"), "{outcome:?}");
            let expected = ["24 80", "2000", "out", "err", "own"];
            ensure!(lines_of(&outcome.stdout) == expected, "{outcome:?}");
        }
        app.end()
    });
}

#[test]
fn without_one_there_is_none() {
    check(|world| {
        let app = App::start(world)?;
        ensure!(app.exec("[ -t 0 ] || [ -t 1 ] || echo none")? == "none\n");
        app.end()
    });
}

#[test]
fn the_end_of_a_pipe_ends_its_input() {
    check(|world| {
        let app = App::start(world)?;
        let mut running = app.cli().start(&["exec", "app", "-t", "--", "cat"])?;
        running.write("a line\n")?;
        // Its echo, and what `cat` makes of it.
        running.wait_stdout("a line\r\na line\r\n")?;
        running.finish()?.expect_code(0)?;
        app.end()
    });
}

#[test]
fn much_comes_through_whole() {
    check(|world| {
        let app = App::start(world)?;
        let outcome = app
            .cli()
            .run(&["exec", "app", "-t", "--", "seq", "1", "30000"])?;
        outcome.expect_code(0)?;
        let lines = lines_of(&outcome.stdout);
        ensure!(lines.len() == 30_000, "{} lines", lines.len());
        ensure!(lines.last() == Some(&"30000"));
        app.end()
    });
}

#[test]
fn it_follows_the_size_of_the_callers_and_gives_it_back() {
    check(|world| {
        let app = App::start(world)?;
        let script = "stty size; trap 'echo now $(stty size)' WINCH; echo up; \
                      while :; do read line && echo got $line && [ x$line = xend ] && exit 9; done";
        let args = ["exec", "app", "-t", "-i", "--", "sh", "-c", script];
        let mut terminal = app.cli().start_on_terminal(&args, (100, 30))?;
        terminal.wait_for("30 100")?;
        terminal.wait_for("up")?;
        ensure!(terminal.is_raw()?, "what is typed is not passed through");
        terminal.set_size((120, 40))?;
        // The signal ends the shell's read, or its trap is run when the read is over.
        terminal.write("\r")?;
        terminal.wait_for("now 40 120")?;
        terminal.write("word\r")?;
        terminal.wait_for("got word")?;
        terminal.write("end\r")?;
        ensure!(terminal.wait_end()? == Some(9), "{}", terminal.text());
        ensure!(!terminal.is_raw()?, "the terminal stays raw");
        app.end()
    });
}

#[test]
fn what_is_typed_interrupts_the_process_and_not_the_command() {
    check(|world| {
        let app = App::start(world)?;
        let script = "trap 'echo caught; exit 11' INT; echo up; while :; do sleep 0.1; done";
        let args = ["exec", "app", "-t", "--", "sh", "-c", script];
        let mut terminal = app.cli().start_on_terminal(&args, (80, 24))?;
        terminal.wait_for("up")?;
        terminal.write("\x03")?;
        terminal.wait_for("caught")?;
        ensure!(terminal.wait_end()? == Some(11), "{}", terminal.text());
        app.end()
    });
}
