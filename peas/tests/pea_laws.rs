//! The laws of a pea's life: an exit is told at once, a failure leaves nothing, a destroy forgets
//! nobody, and everything is torn down exactly once. Fakes on the runtime's own time.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use garden_peas::teardown::{Resources, Stage};
use garden_peas::{Found, PeaSet, Policy, RunError, TeardownMode};
use support::{FakeHost, FakeStages, HostError, Script, files, open, order};
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

struct Stand {
    place: TempDir,
    stages: FakeStages,
    host: Arc<FakeHost>,
    peas: Arc<PeaSet<FakeHost>>,
}

impl Stand {
    fn new() -> Self {
        Self::with(Policy::default())
    }

    fn with(policy: Policy) -> Self {
        let place = tempfile::tempdir().expect("tempdir");
        let stages = FakeStages::new();
        let (host, peas) = set(place.path(), &stages, policy);
        Self {
            place,
            stages,
            host,
            peas,
        }
    }
}

fn set(
    place: &Path,
    stages: &FakeStages,
    policy: Policy,
) -> (Arc<FakeHost>, Arc<PeaSet<FakeHost>>) {
    let host = Arc::new(FakeHost::new(stages, open(place, stages)));
    let peas = Arc::new(PeaSet::new(Arc::clone(&host), policy));
    (host, peas)
}

#[tokio::test(start_paused = true)]
async fn a_delete_that_takes_8_seconds_does_not_delay_the_exit() {
    let it = Stand::new();
    let slow = Script::Takes(Duration::from_secs(8));
    it.stages.script("i", Stage::Unmount, slow);
    let pea = it.peas.run(order("p", "i")).await.expect("runs");
    it.host.end("i", 13);
    let ended = Instant::now();
    assert_eq!(pea.wait().await.expect("exit"), 13);
    assert_eq!(ended.elapsed(), Duration::ZERO);
    assert_eq!(
        files(it.place.path()).len(),
        1,
        "the teardown was on file before"
    );
    it.host.queue.wait_idle().await;
    assert!(ended.elapsed() >= Duration::from_secs(8));
    assert!(files(it.place.path()).is_empty());
}

#[tokio::test(start_paused = true)]
async fn inline_teardown_delays_the_exit_as_it_always_did() {
    let it = Stand::with(Policy {
        teardown: TeardownMode::Inline,
        ..Policy::default()
    });
    let slow = Script::Takes(Duration::from_secs(8));
    it.stages.script("i", Stage::Unmount, slow);
    let pea = it.peas.run(order("p", "i")).await.expect("runs");
    it.host.end("i", 13);
    let ended = Instant::now();
    assert_eq!(pea.wait().await.expect("exit"), 13);
    assert!(ended.elapsed() >= Duration::from_secs(8));
    assert_eq!(it.host.queue.depth(), 0);
}

#[tokio::test(start_paused = true)]
async fn inline_teardown_that_fails_is_left_to_the_queue() {
    let it = Stand::with(Policy {
        teardown: TeardownMode::Inline,
        ..Policy::default()
    });
    it.stages.script("i", Stage::Trash, Script::Fails(5));
    let pea = it.peas.run(order("p", "i")).await.expect("runs");
    it.host.end("i", 0);
    assert_eq!(pea.wait().await.expect("exit"), 0);
    assert_eq!(it.stages.journal.count("trash i"), 1);
    it.host.queue.wait_idle().await;
    assert_eq!(it.stages.journal.count("trash i"), 6);
}

#[tokio::test(start_paused = true)]
async fn deletes_that_never_return_hold_up_no_exit() {
    let it = Stand::new();
    for number in 0..20 {
        let instance = format!("i{number}");
        it.stages.script(&instance, Stage::Unmount, Script::Never);
        let pea = it.peas.run(order("probe", &instance)).await.expect("runs");
        it.host.end(&instance, number);
        let ended = Instant::now();
        assert_eq!(pea.wait().await.expect("exit"), number);
        assert_eq!(ended.elapsed(), Duration::ZERO);
    }
    sleep(Duration::from_secs(300)).await;
    assert_eq!(it.host.queue.snapshot().stuck, 20);
    it.host.queue.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn the_teardown_happens_once_however_many_wait() {
    let it = Stand::new();
    let pea = it.peas.run(order("p", "i")).await.expect("runs");
    let waiters: Vec<_> = (0..25)
        .map(|_| {
            let pea = pea.clone();
            tokio::spawn(async move { pea.wait().await.expect("exit") })
        })
        .collect();
    assert_eq!(pea.exited(), None);
    it.host.end("i", 7);
    for waiter in waiters {
        assert_eq!(waiter.await.expect("waiter"), 7);
    }
    pea.destroy();
    assert_eq!(pea.wait().await.expect("again, after the end"), 7);
    it.host.queue.wait_idle().await;
    for stage in ["kill", "unmount", "trash", "free", "cgroup", "records"] {
        assert_eq!(it.stages.journal.count(&format!("{stage} i")), 1);
    }
    assert_eq!(it.stages.journal.count("SIGKILL i"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_process_id_is_taken_until_the_exit_and_free_from_then_on() {
    let it = Stand::new();
    it.stages.script("i0", Stage::Kill, Script::Never);
    let first = it.peas.run(order("p", "i0")).await.expect("runs");
    let error = it.peas.run(order("p", "i1")).await.expect_err("taken");
    assert_eq!(error.to_string(), "process ID 'p' already in use");
    it.host.end("i0", 0);
    first.wait().await.expect("exit");
    let second = it.peas.run(order("p", "i2")).await.expect("free at once");
    assert_eq!(it.peas.get("p").expect("listed").instance, "i2");
    it.host.end("i2", 1);
    assert_eq!(second.wait().await.expect("exit"), 1);
    assert!(it.peas.get("p").is_none());
    assert_eq!(it.stages.journal.count("rootfs i1"), 0);
}

#[tokio::test(start_paused = true)]
async fn the_user_is_found_before_anything_is_started() {
    let it = Stand::new();
    it.peas.run(order("p", "i")).await.expect("runs");
    assert_eq!(
        it.stages.journal.lines(),
        ["rootfs i", "users i", "launch i"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_start_that_fails_anywhere_is_undone_before_its_error_is_returned() {
    for (step, done) in [("rootfs", 1), ("users", 2), ("launch", 3)] {
        let it = Stand::new();
        it.host.script(step, Script::Fails(1));
        let error = it.peas.run(order("p", "i")).await.expect_err("fails");
        let lines = it.stages.journal.lines();
        assert_eq!(lines.len(), done + 6, "{step}: {lines:?}");
        assert_eq!(lines.last().map(String::as_str), Some("records i"));
        assert!(files(it.place.path()).is_empty());
        assert_eq!(
            error.into_source(),
            Some(HostError(step)),
            "its type is kept"
        );
        it.host.script(step, Script::Takes(Duration::ZERO));
        it.peas.run(order("p", "j")).await.expect("the id is free");
    }
}

#[tokio::test(start_paused = true)]
async fn an_undo_that_hangs_holds_the_error_back_no_longer_than_patience() {
    let it = Stand::new();
    it.host.script("launch", Script::Fails(1));
    it.stages.script("i", Stage::Trash, Script::Never);
    let asked = Instant::now();
    let error = it.peas.run(order("p", "i")).await.expect_err("fails");
    assert!(matches!(error, RunError::Launch { .. }));
    assert_eq!(asked.elapsed(), Policy::default().undo_patience);
    assert_eq!(files(it.place.path()).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn destroy_tears_all_down_the_starting_ones_too() {
    let it = Stand::new();
    for number in 0..5 {
        let name = format!("{number}");
        it.peas.run(order(&name, &name)).await.expect("runs");
    }
    it.host
        .script("launch", Script::Takes(Duration::from_secs(2)));
    let launching = tokio::spawn({
        let peas = Arc::clone(&it.peas);
        async move { peas.run(order("launching", "launching")).await }
    });
    sleep(Duration::from_secs(1)).await;
    it.host
        .script("rootfs", Script::Takes(Duration::from_secs(2)));
    let making = tokio::spawn({
        let peas = Arc::clone(&it.peas);
        async move { peas.run(order("making", "making")).await }
    });
    sleep(Duration::from_millis(500)).await;
    let running = it.peas.running();
    assert_eq!(running.len(), 5);

    let left = it.peas.destroy(Duration::from_secs(30)).await;
    assert!(left.is_empty());
    for pea in running {
        assert_eq!(pea.exited(), Some(137));
    }
    let launched = launching
        .await
        .expect("task")
        .expect("it had been launched");
    assert_eq!(launched.exited(), Some(137));
    let unmade = making.await.expect("task");
    assert!(matches!(unmade, Err(RunError::Destroyed(_))));
    let refused = it.peas.run(order("late", "late")).await;
    assert!(matches!(refused, Err(RunError::Destroyed(_))));

    it.host.queue.wait_idle().await;
    for instance in ["0", "1", "2", "3", "4", "launching", "making"] {
        assert_eq!(it.stages.journal.count(&format!("records {instance}")), 1);
    }
    assert_eq!(it.stages.journal.count("launch making"), 0);
    assert_eq!(it.stages.journal.count("rootfs late"), 0);
}

#[tokio::test(start_paused = true)]
async fn destroy_gives_up_on_a_start_that_hangs_and_undoes_it_later() {
    let it = Stand::new();
    let returns = Arc::new(Notify::new());
    it.host
        .script("rootfs", Script::Until(Arc::clone(&returns)));
    let starting = tokio::spawn({
        let peas = Arc::clone(&it.peas);
        async move { peas.run(order("p", "i")).await }
    });
    sleep(Duration::from_secs(1)).await;
    let asked = Instant::now();
    let left = it.peas.destroy(Duration::from_secs(3)).await;
    assert_eq!((left, asked.elapsed().as_secs()), (vec!["p".to_owned()], 3));
    returns.notify_one();
    let unmade = starting.await.expect("task");
    assert!(matches!(unmade, Err(RunError::Destroyed(_))));
    assert_eq!(it.stages.journal.count("records i"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_changes_nothing() {
    let it = Stand::new();
    it.host
        .script("rootfs", Script::Takes(Duration::from_secs(2)));
    let run = it.peas.run(order("p", "i"));
    let gone = tokio::time::timeout(Duration::from_secs(1), run).await;
    assert!(gone.is_err());
    sleep(Duration::from_secs(5)).await;
    let pea = it.peas.get("p").expect("runs all the same");
    it.host.end("i", 3);
    assert_eq!(pea.wait().await.expect("exit"), 3);
}

#[test]
fn a_crash_between_exit_and_teardown_is_made_good_by_the_next_start() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("runtime")
    };
    let place = tempfile::tempdir().expect("tempdir");
    let first = runtime();
    let unknown = first.block_on(async {
        let stages = FakeStages::new();
        stages.script("ended", Stage::Kill, Script::Never);
        let (host, peas) = set(place.path(), &stages, Policy::default());
        let ended = peas.run(order("ended", "ended")).await.expect("runs");
        let lives = peas.run(order("lives", "lives")).await.expect("runs");
        host.end("ended", 0);
        ended.wait().await.expect("exit");
        lives
    });
    drop(first);
    assert_eq!(
        files(place.path()).len(),
        1,
        "only of the pea that has ended"
    );
    runtime().block_on(async {
        assert!(unknown.wait().await.is_err(), "its exit is not made up");
        let stages = FakeStages::new();
        open(place.path(), &stages).wait_idle().await;
        assert_eq!(stages.journal.count("records ended"), 1);
    });
    assert!(files(place.path()).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_pea_that_outlived_its_server_lives_on_as_any_other() {
    let it = Stand::new();
    let found = |process: &str| Found {
        name: order(process, process).name,
        instance: process.into(),
        resources: Resources::default(),
        process: it.host.process(process),
    };
    let ended = found("ended");
    it.host.end("ended", 13);
    let ended = it.peas.adopt(ended).expect("adopted");
    assert_eq!(ended.wait().await.expect("exit"), 13);
    let lives = it.peas.adopt(found("lives")).expect("adopted");
    assert_eq!(it.peas.running().len(), 1);
    let taken = it.peas.run(order("lives", "other")).await;
    assert!(matches!(taken, Err(RunError::InUse(_))));
    assert!(it.peas.destroy(Duration::from_secs(5)).await.is_empty());
    assert_eq!(lives.exited(), Some(137));
    assert!(it.peas.adopt(found("late")).is_err());
    it.host.queue.wait_idle().await;
    for instance in ["ended", "lives"] {
        assert_eq!(it.stages.journal.count(&format!("trash {instance}")), 1);
        assert_eq!(it.stages.journal.count(&format!("rootfs {instance}")), 0);
    }
}
