//! Health checks: what they say, that it is told, and that nothing of them stays.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use garden_integration::{App, Leaks, check, wait_until};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(60);

/// What the server tells of a container's health.
fn health(app: &App<'_>) -> Result<Value> {
    let text = app.cli().output(&["health", "show", "app", "--json"])?;
    Ok(serde_json::from_str(&text)?)
}

fn until(app: &App<'_>, what: &str, mut holds: impl FnMut(&Value) -> bool) -> Result<Value> {
    let mut last = Value::Null;
    wait_until(what, DEADLINE, || {
        last = health(app)?;
        Ok(holds(&last))
    })
    .with_context(|| format!("{last:#}"))?;
    Ok(last)
}

/// Sets checks by a file, as it would be written by hand.
fn set(app: &App<'_>, directory: &std::path::Path, checks: &Value) -> Result<()> {
    let file = directory.join("checks.json");
    std::fs::write(&file, checks.to_string())?;
    let file = file.to_str().context("a strange directory")?;
    app.cli().output(&["health", "set", "app", file])?;
    Ok(())
}

fn shell(name: &str, role: &str, script: &str) -> Value {
    json!({"name": name, "role": role, "interval_ms": 50, "start_interval_ms": 20, "start_period_ms": 0, "failures": 2,
        "probe": {"exec": {"path": "/bin/sh", "args": ["-c", script]}}})
}

#[test]
fn ready_unready_and_ready_again() {
    check(|world| {
        let app = App::start(world)?;
        set(
            &app,
            world.directory(),
            &json!([shell("file", "readiness", "cat /tmp/ready")]),
        )?;
        let seen = until(&app, "a run has failed", |h| {
            h["checks"][0]["runs"].as_u64() > Some(2)
        })?;
        ensure!(seen["state"] == "starting", "{seen}");
        let output = seen["checks"][0]["last"]["output"]
            .as_str()
            .unwrap_or_default();
        ensure!(
            output.contains("exit code 1") && output.contains("/tmp/ready"),
            "{output}"
        );
        let waiting = app.cli().start(&["wait", "app", "--ready"])?;
        app.exec("echo > /tmp/ready")?;
        waiting.finish()?.expect_code(0)?;
        ensure!(app.cli().output(&["ls"])?.contains("ready"));
        app.exec("rm /tmp/ready")?;
        until(&app, "it is unready", |h| h["state"] == "unready")?;
        app.exec("echo > /tmp/ready")?;
        let seen = until(&app, "it is ready again", |h| h["state"] == "ready")?;
        let states: Vec<_> = seen["history"].as_array().into_iter().flatten().collect();
        let states: Vec<_> = states
            .iter()
            .filter_map(|change| change["to"].as_str())
            .collect();
        ensure!(states == ["ready", "unready", "ready"], "{seen}");
        ensure!(
            seen["latency"]["sum_seconds"].as_f64() > Some(0.0),
            "{seen}"
        );
        app.end()
    });
}

#[test]
fn startup_gates_the_others_and_its_lines_are_events() {
    check(|world| {
        let app = App::start(world)?;
        let script = "echo looking; until test -e /tmp/go; do usleep 10000; done; echo found";
        let checks = json!([
            {"name": "boot", "role": "startup", "timeout_ms": 0, "probe": {"exec": {
                "path": "/bin/sh", "args": ["-c", script], "long_lived": true}}},
            shell("alive", "liveness", "echo . >> /tmp/runs; test -e /tmp/go"),
        ]);
        set(&app, world.directory(), &checks)?;
        let events = ["events", "app", "--no-follow", "--since", "1h", "--json"];
        wait_until("its first line is an event", DEADLINE, || {
            Ok(app.cli().output(&events)?.contains("\"line\":\"looking\""))
        })?;
        ensure!(
            app.exec("ls /tmp")?.lines().all(|name| name != "runs"),
            "it was not gated"
        );
        app.exec("echo > /tmp/go")?;
        until(&app, "it is ready", |h| h["state"] == "ready")?;
        let told = app.cli().output(&events)?;
        ensure!(told.contains("\"line\":\"found\""), "{told}");
        app.end()
    });
}

#[test]
fn probes_look_from_inside_the_network() {
    check(|world| {
        let app = App::start(world)?;
        let quick = json!({"interval_ms": 50, "start_interval_ms": 20, "start_period_ms": 0, "failures": 1});
        let with = |name: &str, probe: Value| {
            let mut check = quick.clone();
            check["name"] = name.into();
            check["role"] = "readiness".into();
            check["probe"] = probe;
            check
        };
        let checks = json!([
            with("page", json!({"http": {"port": 8080, "path": "/image"}})),
            with(
                "missing",
                json!({"http": {"port": 8080, "path": "/none", "status": [404, 404]}})
            ),
            with("port", json!({"tcp": {"port": 8080}})),
            with("closed", json!({"tcp": {"host": "127.0.0.1", "port": 1}})),
        ]);
        set(&app, world.directory(), &checks)?;
        let of = |h: &Value, name: &str| {
            let checks = h["checks"].as_array().cloned().unwrap_or_default();
            let found = checks
                .into_iter()
                .find(|check| check["spec"]["name"] == name);
            found.unwrap_or_default()
        };
        until(&app, "the page is not there", |h| {
            of(h, "page")["verdict"] == "failing"
        })?;
        let server = "httpd -p 127.0.0.1:8080 -h /etc";
        app.exec(server)?;
        for name in ["page", "missing", "port"] {
            until(&app, name, |h| of(h, name)["verdict"] == "passing")?;
        }
        let seen = health(&app)?;
        let output = of(&seen, "closed")["last"]["output"].to_string();
        ensure!(output.contains("refused"), "{output}");
        ensure!(seen["state"] == "starting", "{seen}");
        app.cli().output(&["health", "rm", "app", "closed"])?;
        app.cli().output(&["wait", "app", "--ready"])?;
        app.exec("killall httpd")?;
        until(&app, "it is unready", |h| h["state"] == "unready")?;
        app.end()
    });
}

#[test]
fn strange_servers_are_unhealthy_in_time() {
    check(|world| {
        let app = App::start(world)?;
        // One that says nothing, one that speaks no HTTP, one that never stops.
        app.exec("nc -ll -p 81 -e /bin/sleep 1000 >/dev/null 2>&1 </dev/null &")?;
        app.exec("nc -ll -p 82 -e /bin/echo hello >/dev/null 2>&1 </dev/null &")?;
        app.exec("nc -ll -p 83 -e /bin/yes >/dev/null 2>&1 </dev/null &")?;
        let checks: Vec<_> = [81, 82, 83]
            .map(|port| {
                json!({"name": format!("p{port}"), "role": "liveness", "interval_ms": 50,
                    "start_interval_ms": 20, "start_period_ms": 0, "timeout_ms": 200, "failures": 2,
                    "probe": {"http": {"port": port}}})
            })
            .to_vec();
        set(&app, world.directory(), &json!(checks))?;
        for index in 0..3 {
            let expected = if index == 0 { "in time" } else { "HTTP" };
            // On a busy host a probe may not even get as far as to the server.
            until(&app, &format!("{index} fails for its reason"), |h| {
                let check = &h["checks"][index];
                let last = check["last"]["output"].to_string();
                let known = last.contains(expected) || last.contains("refused");
                check["verdict"] == "failing" && known
            })?;
        }
        let outcome = app.cli().run(&["wait", "app", "--ready"])?;
        outcome.expect_code(1)?;
        app.end()
    });
}

#[test]
fn a_hung_check_delays_no_other_and_is_gone() {
    check(|world| {
        let app = App::start(world)?;
        app.exec("true")?;
        app.pea("root", "true")?;
        let before = Leaks::now(world, Some(&app.server));
        let hung = |name: &str, pea: bool| {
            json!({"name": name, "role": "liveness", "interval_ms": 20, "start_interval_ms": 20, "start_period_ms": 0,
                "timeout_ms": 300, "failures": 2, "probe": {"exec": {"path": "/bin/sh", "pea": pea,
                "args": ["-c", "trap '' TERM; sleep 1000 & wait"]}}})
        };
        let checks = json!([
            hung("inside", false),
            hung("pea", true),
            shell("quick", "readiness", "true"),
        ]);
        set(&app, world.directory(), &checks)?;
        let seen = until(&app, "both have failed, and the third passes", |h| {
            let verdicts = [0, 1, 2].map(|index| h["checks"][index]["verdict"].as_str());
            verdicts == [Some("failing"), Some("failing"), Some("passing")]
        })?;
        ensure!(seen["state"] == "unhealthy", "{seen}");
        let output = seen["checks"][0]["last"]["output"].to_string();
        ensure!(output.contains("did not end within"), "{output}");
        set(&app, world.directory(), &json!([]))?;
        before.expect_no_more(world, Some(&app.server))?;
        app.end()
    });
}

#[test]
fn runs_leave_nothing() {
    check(|world| {
        let app = App::start(world)?;
        app.exec("true")?;
        app.pea("root", "true")?;
        let before = Leaks::now(world, Some(&app.server));
        let fast = |name: &str, pea: bool| {
            let mut check = shell(name, "readiness", "echo x; true");
            check["interval_ms"] = 10.into();
            check["probe"]["exec"]["pea"] = pea.into();
            check
        };
        let checks = json!([fast("inside", false), fast("pea", true), {"name": "net", "role":
            "readiness", "interval_ms": 10, "start_interval_ms": 10, "probe": {"tcp": {"port": 9}}}]);
        set(&app, world.directory(), &checks)?;
        until(&app, "many runs have ended", |h| {
            (0..3).all(|index| h["checks"][index]["runs"].as_u64() > Some(40))
        })?;
        let listed = app.cli().output(&["inspect", "app", "--json"])?;
        ensure!(
            listed.matches("health:").count() < 8,
            "runs pile up: {listed}"
        );
        set(&app, world.directory(), &json!([]))?;
        before.expect_no_more(world, Some(&app.server))?;
        app.end()
    });
}

#[test]
fn checks_go_on_after_a_restart() {
    check(|world| {
        let mut app = App::start(world)?;
        app.exec("echo > /tmp/ready")?;
        let checks = json!([
            shell("boot", "startup", "echo . >> /tmp/boots"),
            shell("file", "readiness", "cat /tmp/ready"),
            shell("slow", "readiness", "usleep 100000"),
        ]);
        set(&app, world.directory(), &checks)?;
        app.cli().output(&["wait", "app", "--ready"])?;
        app.server.kill()?;
        app.server.restart()?;
        let seen = health(&app)?;
        ensure!(seen["state"] == "ready", "{seen}");
        ensure!(seen["history"].as_array().map(Vec::len) > Some(0), "{seen}");
        app.exec("rm /tmp/ready")?;
        until(&app, "it is unready", |h| h["state"] == "unready")?;
        ensure!(
            app.exec("cat /tmp/boots")?.lines().count() == 1,
            "started up again"
        );
        let listed = app.cli().output(&["inspect", "app", "--json"])?;
        ensure!(listed.matches("health:").count() < 6, "{listed}");
        app.cli().output(&["rm", "app"])?;
        Ok(())
    });
}

#[test]
fn an_unhealthy_container_is_killed_when_told_so() {
    check(|world| {
        let server = world.server()?;
        let image = world.images()?.tar("app")?;
        let args = [
            "create",
            "--image",
            &image,
            "--name",
            "app",
            "--health-cmd",
            "test ! -e /tmp/sick",
            "--health-interval",
            "20ms",
            "--health-start-interval",
            "20ms",
            "--health-retries",
            "2",
            "--health-on-failure",
            "kill",
        ];
        server.cli().output(&args)?;
        server.cli().output(&["wait", "app", "--ready"])?;
        let long = [
            "exec",
            "app",
            "--",
            "/bin/sh",
            "-c",
            "echo up; exec sleep 1000",
        ];
        let process = server.cli().start(&long)?;
        process.wait_stdout("up")?;
        let over = server.cli().start(&["wait", "app"])?;
        server
            .cli()
            .output(&["exec", "app", "--", "/bin/touch", "/tmp/sick"])?;
        process.finish()?.expect_code(137)?;
        over.finish()?.expect_code(0)?;
        let shown = server.cli().output(&["inspect", "app"])?;
        ensure!(
            shown.contains("unhealthy") && shown.contains("stopped"),
            "{shown}"
        );
        server.cli().output(&["rm", "app"])?;
        Ok(())
    });
}

#[test]
fn secrets_are_not_told() {
    check(|world| {
        let app = App::start(world)?;
        let mut check = shell(
            "leaky",
            "liveness",
            "echo $TOKEN at http://me:word@host/; exit 1",
        );
        check["probe"]["exec"]["env"] = json!(["TOKEN=very-secret"]);
        set(&app, world.directory(), &json!([check]))?;
        let seen = until(&app, "it is unhealthy", |h| h["state"] == "unhealthy")?;
        let change = seen["history"][0].to_string();
        ensure!(change.contains("*** at http://***@host/"), "{change}");
        ensure!(!change.contains("very-secret"), "{change}");
        app.end()
    });
}

#[test]
fn bad_checks_are_refused_before_anything_is_made() {
    check(|world| {
        let server = world.server()?;
        let image = world.images()?.tar("app")?;
        let create = [
            "create",
            "--image",
            &image,
            "--name",
            "app",
            "--health-tcp",
            "80",
        ];
        for flags in [
            ["--health-interval", "1ms"],
            ["--health-retries", "0"],
            ["--health-timeout", "99h"],
        ] {
            let outcome = server.cli().run(&[create.as_slice(), &flags].concat())?;
            ensure!(outcome.code != Some(0), "{flags:?} was accepted");
            ensure!(outcome.stderr.contains("give "), "{}", outcome.stderr);
        }
        ensure!(!server.cli().output(&["ls"])?.contains("app"));
        let outcome = server.cli().run(&["wait", "app", "--ready"])?;
        outcome.expect_code(125)?;
        Ok(())
    });
}
