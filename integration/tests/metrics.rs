//! What containers and peas use, as the kernel counts it.

use anyhow::{Context as _, Result, ensure};
use garden_integration::{App, Server, check};
use serde_json::Value;

const MEGABYTE: u64 = 1 << 20;

fn bulk(server: &Server<'_>, names: &[&str]) -> Result<Value> {
    server.get(&format!(
        "/containers/bulk_metrics?handles={}",
        names.join(",")
    ))
}

fn number(value: &Value, path: &str) -> Result<u64> {
    let found = value.pointer(path).and_then(Value::as_u64);
    found.with_context(|| format!("no {path} in {value}"))
}

#[test]
fn a_containers_use_is_what_it_did() {
    check(|world| {
        let app = App::start(world)?;
        let before = app.server.get("/containers/app/metrics")?;
        app.exec("dd if=/dev/zero of=/dev/shm/held bs=1M count=20 2>/dev/null")?;
        app.exec("i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done")?;
        let after = app.server.get("/containers/app/metrics")?;
        let grown = |path: &str| -> Result<u64> {
            Ok(number(&after, path)?.saturating_sub(number(&before, path)?))
        };
        let memory = grown("/MemoryStat/TotalUsageTowardLimit")?;
        ensure!(memory >= 19 * MEGABYTE, "{memory} bytes of 20 MB held");
        ensure!(grown("/CPUStat/Usage")? > 1_000_000, "{before} {after}");
        ensure!(grown("/Age")? > 0, "{before} {after}");
        // The init and what it waits for.
        ensure!(number(&after, "/PidStat/Current")? >= 2, "{after}");
        ensure!(number(&after, "/PidStat/Max")? == 0, "{after}");
        let total = number(&after, "/DiskStat/TotalBytesUsed")?;
        ensure!(
            total >= number(&after, "/DiskStat/ExclusiveBytesUsed")?,
            "{after}"
        );
        let own = app.server.get("/garden/v1/containers/app/metrics")?;
        ensure!(own["missing"] == Value::Array(Vec::new()), "{own}");
        app.end()
    });
}

#[test]
fn many_are_measured_at_once_and_one_that_fails_fails_alone() {
    check(|world| {
        let app = App::start(world)?;
        let args = ["pea", "run", "app", "--image", &app.image];
        let script = [
            "--",
            "/bin/sh",
            "-c",
            "dd if=/dev/zero of=/dev/shm/held bs=1M count=8 2>/dev/null; echo up; cat",
        ];
        let shared = app
            .cli()
            .start(&[&args[..], &["--id", "probe"], &script].concat())?;
        shared.wait_stdout("up")?;
        let own = [
            "--id",
            "beside",
            "--own-limits",
            "--memory",
            "64M",
            "--pids",
            "20",
        ];
        let beside = app.cli().start(&[&args[..], &own, &script].concat())?;
        beside.wait_stdout("up")?;
        let all = bulk(&app.server, &["app", "probe", "beside", "nobody"])?;
        ensure!(
            all["nobody"]["Err"]["Type"] == "ContainerNotFoundError",
            "{all}"
        );
        for name in ["app", "probe", "beside"] {
            ensure!(all[name]["Err"].is_null(), "{name}: {all}");
            ensure!(
                number(&all[name], "/Metrics/CPUStat/Usage")? > 0,
                "{name}: {all}"
            );
        }
        let memory = |name: &str| number(&all[name], "/Metrics/MemoryStat/TotalUsageTowardLimit");
        ensure!(memory("probe")? >= 8 * MEGABYTE, "{all}");
        ensure!(memory("beside")? >= 8 * MEGABYTE, "{all}");
        // What is inside the container's limits is counted in it, what is beside them is not.
        ensure!(memory("app")? >= memory("probe")?, "{all}");
        ensure!(memory("app")? < 15 * MEGABYTE, "{all}");
        ensure!(
            number(&all["probe"], "/Metrics/PidStat/Current")? >= 1,
            "{all}"
        );
        ensure!(
            number(&all["beside"], "/Metrics/PidStat/Max")? == 20,
            "{all}"
        );
        ensure!(
            number(&all["probe"], "/Metrics/CPUEntitlement")? == 0,
            "{all}"
        );
        // A pea that has ended is unknown, and is measured again after a restart of the server.
        let mut app = app;
        beside.finish()?.expect_code(0)?;
        app.server.kill()?;
        app.server.restart()?;
        let all = bulk(&app.server, &["probe", "beside"])?;
        ensure!(memory_of(&all, "probe")? >= 8 * MEGABYTE, "{all}");
        ensure!(
            all["beside"]["Err"]["Type"] == "ContainerNotFoundError",
            "{all}"
        );
        app.cli().output(&["rm", "app"])?;
        Ok(())
    });
}

fn memory_of(all: &Value, name: &str) -> Result<u64> {
    number(&all[name], "/Metrics/MemoryStat/TotalUsageTowardLimit")
}

#[test]
fn a_pea_id_is_a_containers_own() {
    check(|world| {
        let server = world.server()?;
        let cli = server.cli();
        let image = world.images()?.tar("app")?;
        let mut running = Vec::new();
        for name in ["one", "two"] {
            cli.output(&["create", "--quiet", "--image", &image, "--name", name])?;
            let args = ["pea", "run", name, "--image", &image, "--id", "probe"];
            let script = ["--", "/bin/sh", "-c", "echo up; cat"];
            let pea = cli.start(&[&args[..], &script].concat())?;
            pea.wait_stdout("up")?;
            running.push(pea);
        }
        // In one container it is taken, also if it is named like a container.
        let again = [
            "pea",
            "run",
            "one",
            "--image",
            &image,
            "--id",
            "probe",
            "--",
            "/bin/true",
        ];
        cli.run(&again)?
            .expect_code(125)?
            .expect_one_line(&["process ID 'probe' already in use"])?;
        let named = [
            "pea",
            "run",
            "one",
            "--image",
            &image,
            "--id",
            "two",
            "--",
            "/bin/true",
        ];
        cli.run(&named)?.expect_code(0)?;
        let all = bulk(&server, &["probe"])?;
        ensure!(all["probe"]["Err"].is_null(), "{all}");
        for pea in running {
            pea.finish()?.expect_code(0)?;
        }
        for name in ["one", "two"] {
            cli.output(&["rm", name])?;
        }
        Ok(())
    });
}

#[test]
fn shares_entitle_to_processor_time() {
    check(|world| {
        let server = world.server_with(&["--cpu-entitlement-per-share", "10"])?;
        let image = world.images()?.tar("app")?;
        let create = [
            "create",
            "--quiet",
            "--image",
            &image,
            "--name",
            "app",
            "--cpu-shares",
            "20",
        ];
        server.cli().output(&create)?;
        let metrics = server.get("/containers/app/metrics")?;
        // 20 shares of a tenth of a CPU each: two CPUs.
        let (age, entitled) = (
            number(&metrics, "/Age")?,
            number(&metrics, "/CPUEntitlement")?,
        );
        ensure!(entitled.abs_diff(2 * age) < 1000, "{metrics}");
        server.cli().output(&["rm", "app"])?;
        Ok(())
    });
}
