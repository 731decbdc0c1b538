//! Measurements of what an exit's path costs, on the real clock and a real tmpfs. Nothing here is
//! asserted: run with `cargo test --release -p garden-peas --test measure -- --ignored --nocapture`.

#![allow(clippy::print_stdout, reason = "printing figures is what it is for")]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use garden_peas::teardown::Stage;
use garden_peas::{PeaSet, Policy};
use support::{FakeHost, FakeStages, Script, open, order, target};

const TMPFS: &str = "/dev/shm";

fn place() -> Option<tempfile::TempDir> {
    match tempfile::tempdir_in(Path::new(TMPFS)) {
        Ok(place) => Some(place),
        Err(error) => {
            println!("SKIPPED measure: no {TMPFS}: {error}");
            None
        }
    }
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: usize| times[(times.len() - 1) * share / 100].as_micros();
    println!(
        "{what}: n={} median={}us p90={}us p99={}us max={}us",
        times.len(),
        at(50),
        at(90),
        at(99),
        at(100)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn enqueue_cost() {
    let Some(place) = place() else { return };
    for (what, others) in [
        ("enqueue, empty queue", 0),
        ("enqueue, 1000 others failing", 1000),
    ] {
        let directory = place.path().join(format!("{others}"));
        let stages = FakeStages::new();
        let queue = open(&directory, &stages);
        for number in 0..others {
            let instance = format!("failing{number}");
            stages.script(&instance, Stage::Kill, Script::Fails(usize::MAX));
            queue.enqueue(target(&instance));
        }
        let mut times = Vec::new();
        for number in 0..2000 {
            let target = target(&format!("i{number}"));
            let begun = Instant::now();
            let mut ticket = queue.enqueue(target);
            times.push(begun.elapsed());
            if others == 0 {
                ticket.finished().await;
            }
        }
        report(what, times);
        queue.shutdown(Duration::from_secs(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn whole_job_cost() {
    let Some(place) = place() else { return };
    let queue = open(place.path(), &FakeStages::new());
    let begun = Instant::now();
    for number in 0..2000 {
        queue.enqueue(target(&format!("i{number}")));
    }
    queue.wait_idle().await;
    println!(
        "2000 jobs of 6 empty stages, 2 workers: {:?}",
        begun.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn exit_to_announcement() {
    let Some(place) = place() else { return };
    for (what, script) in [
        (
            "exit to announcement, quick deletes",
            Script::Takes(Duration::ZERO),
        ),
        ("exit to announcement, deletes never return", Script::Never),
    ] {
        let stages = FakeStages::new();
        let directory = place.path().join(what.replace(' ', "-"));
        let host = Arc::new(FakeHost::new(&stages, open(&directory, &stages)));
        let peas = PeaSet::new(Arc::clone(&host), Policy::default());
        let mut times = Vec::new();
        for number in 0..1000 {
            let instance = format!("i{number}");
            stages.script(&instance, Stage::Unmount, script.clone());
            let pea = peas.run(order("p", &instance)).await;
            let pea = pea.expect("runs");
            let begun = Instant::now();
            host.end(&instance, 0);
            pea.wait().await.expect("exit");
            times.push(begun.elapsed());
        }
        report(what, times);
        host.queue.shutdown(Duration::from_secs(1)).await;
    }
}
