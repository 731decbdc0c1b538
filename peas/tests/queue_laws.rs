//! The laws of the teardown queue: nothing is lost, nothing is done out of order, and no job holds
//! up another, an enqueue or a shutdown. Time is the runtime's own, so no test waits for real.

mod support;

use std::sync::Arc;
use std::time::Duration;

use garden_peas::teardown::{Kind, Phase, Progress, Queue, Stage, Target};
use support::{FakeStages, Script, files, open, options, target};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

const GRACE: Duration = Duration::from_secs(5);

fn stages_of(kind: Kind, instance: &str) -> Vec<String> {
    let stages = Stage::ALL.into_iter().filter(|stage| kind.has(*stage));
    stages.map(|stage| format!("{stage} {instance}")).collect()
}

#[tokio::test(start_paused = true)]
async fn stages_run_in_order_and_leave_no_file() {
    let place = tempfile::tempdir().expect("tempdir");
    let stages = FakeStages::new();
    let queue = open(place.path(), &stages);
    let mut ticket = queue.enqueue(Target {
        kind: Kind::Container,
        ..target("a")
    });
    assert!(ticket.durable);
    assert_eq!(
        files(place.path()).len(),
        1,
        "on file before enqueue returns"
    );
    assert!(queue.has("a"));
    assert_eq!(ticket.finished().await, Progress::Done);
    assert_eq!(stages.journal.lines(), stages_of(Kind::Container, "a"));
    assert!(files(place.path()).is_empty());
    assert!(!queue.has("a"));
    assert_eq!(queue.depth(), 0);
    let counts: Vec<_> = queue.snapshot().stages.iter().map(|s| s.count()).collect();
    assert_eq!(counts, [1; 7]);
}

#[tokio::test(start_paused = true)]
async fn a_stage_that_fails_is_tried_again_with_growing_delays_until_it_succeeds() {
    let place = tempfile::tempdir().expect("tempdir");
    let stages = FakeStages::new();
    stages.script("a", Stage::Unmount, Script::Fails(5));
    let queue = open(place.path(), &stages);
    let mut ticket = queue.enqueue(target("a"));
    assert_eq!(ticket.attempted().await, Progress::Delayed);

    let seen = queue.snapshot();
    let job = &seen.jobs[0];
    assert_eq!((seen.depth, seen.retrying, job.attempts), (1, 1, 1));
    assert_eq!((job.stage, job.phase), (Stage::Unmount, Phase::Retrying));
    let error = job.last_error.as_deref().expect("an error");
    assert!(error.starts_with("cannot unmount a: "), "{error}");
    assert!(
        files(place.path())[0].contains("cannot unmount a"),
        "on file"
    );

    assert_eq!(ticket.finished().await, Progress::Done);
    let tries = stages.journal.times("unmount a");
    let waits: Vec<_> = tries.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let expected = [100, 200, 400, 800, 1600].map(Duration::from_millis);
    assert_eq!(waits.len(), expected.len());
    for (wait, expected) in waits.iter().zip(expected) {
        // The runtime's timer counts whole milliseconds.
        assert!(
            wait.abs_diff(expected) <= Duration::from_millis(2),
            "{waits:?}"
        );
    }
    assert_eq!(
        stages.journal.count("kill a"),
        1,
        "what was done is not done again"
    );
    assert_eq!(queue.snapshot().stages[Stage::Unmount as usize].failures, 5);
}

#[tokio::test(start_paused = true)]
async fn a_stage_that_panics_is_one_that_failed() {
    let place = tempfile::tempdir().expect("tempdir");
    let stages = FakeStages::new();
    stages.script("a", Stage::Free, Script::Panics(2));
    let queue = open(place.path(), &stages);
    assert_eq!(queue.enqueue(target("a")).finished().await, Progress::Done);
    assert_eq!(stages.journal.count("free a"), 3);
}

#[tokio::test(start_paused = true)]
async fn jobs_that_fail_for_ever_do_not_hold_up_others() {
    let place = tempfile::tempdir().expect("tempdir");
    let stages = FakeStages::new();
    let queue = open(place.path(), &stages);
    for bad in ["a", "b", "c"] {
        stages.script(bad, Stage::Kill, Script::Fails(usize::MAX));
        queue.enqueue(target(bad));
    }
    assert_eq!(
        queue.enqueue(target("good")).finished().await,
        Progress::Done
    );
    sleep(Duration::from_secs(600)).await;
    assert_eq!(queue.depth(), 3);
    queue.shutdown(GRACE).await;
    assert_eq!(files(place.path()).len(), 3);
}

#[tokio::test(start_paused = true)]
async fn stages_that_never_return_hold_up_neither_others_nor_the_shutdown() {
    let place = tempfile::tempdir().expect("tempdir");
    let stages = FakeStages::new();
    let queue = open(place.path(), &stages);
    for bad in ["a", "b", "c", "d", "e"] {
        stages.script(bad, Stage::Unmount, Script::Never);
        assert!(queue.enqueue(target(bad)).durable);
    }
    assert_eq!(
        queue.enqueue(target("good")).finished().await,
        Progress::Done
    );

    sleep(Duration::from_secs(60)).await;
    let seen = queue.snapshot();
    assert_eq!((seen.depth, seen.stuck), (5, 5));
    assert!(
        seen.jobs
            .iter()
            .all(|job| job.stuck() && job.stage == Stage::Unmount)
    );
    assert!(seen.oldest.expect("some") >= Duration::from_secs(60));
    assert_eq!(
        stages.journal.count("unmount a"),
        1,
        "never two at a time of one job"
    );

    let stopped = Instant::now();
    queue.shutdown(GRACE).await;
    assert_eq!(
        stopped.elapsed(),
        Duration::ZERO,
        "stuck ones are not waited for"
    );
    assert_eq!(
        files(place.path()).len(),
        5,
        "they are kept for the next start"
    );
}

#[tokio::test(start_paused = true)]
async fn a_stage_may_have_a_deadline_of_its_own() {
    let place = tempfile::tempdir().expect("tempdir");
    let stages = FakeStages::new();
    stages.script("quick", Stage::Cgroup, Script::Never);
    stages.script("slow", Stage::Trash, Script::Never);
    let mut options = options();
    let minute = Duration::from_secs(60);
    options.deadlines = [(Stage::Trash, minute)].into();
    let queue = Queue::open(place.path(), stages.clone(), options).expect("queue");
    queue.enqueue(target("quick"));
    queue.enqueue(target("slow"));
    let stuck = || -> Vec<Stage> {
        let jobs = queue.snapshot().jobs.into_iter();
        jobs.filter(|job| job.stuck())
            .map(|job| job.stage)
            .collect()
    };
    sleep(Duration::from_secs(11)).await;
    assert_eq!(stuck(), [Stage::Cgroup]);
    sleep(minute).await;
    assert_eq!(stuck(), [Stage::Cgroup, Stage::Trash]);
    queue.shutdown(GRACE).await;
}

#[tokio::test(start_paused = true)]
async fn a_stuck_job_goes_on_when_its_stage_returns() {
    let place = tempfile::tempdir().expect("tempdir");
    let stages = FakeStages::new();
    let returns = Arc::new(Notify::new());
    stages.script("a", Stage::Unmount, Script::Until(Arc::clone(&returns)));
    let queue = open(place.path(), &stages);
    let mut ticket = queue.enqueue(target("a"));
    assert_eq!(ticket.attempted().await, Progress::Delayed);
    assert_eq!(queue.snapshot().stuck, 1);
    returns.notify_one();
    assert_eq!(ticket.finished().await, Progress::Done);
    assert_eq!(
        stages.journal.lines(),
        stages_of(Kind::Pea, "a"),
        "each stage once"
    );
    assert_eq!(queue.snapshot().stages[Stage::Unmount as usize].stuck, 1);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_waits_for_a_running_stage_no_longer_than_its_grace() {
    let place = tempfile::tempdir().expect("tempdir");
    let stages = FakeStages::new();
    stages.script("quick", Stage::Kill, Script::Takes(Duration::from_secs(2)));
    stages.script("slow", Stage::Kill, Script::Takes(Duration::from_secs(9)));
    let queue = open(place.path(), &stages);
    queue.enqueue(target("quick"));
    let mut slow = queue.enqueue(target("slow"));
    sleep(Duration::from_secs(1)).await;
    let stopped = Instant::now();
    queue.shutdown(GRACE).await;
    assert_eq!(stopped.elapsed(), GRACE);
    let left = files(place.path());
    assert_eq!(left.len(), 2);
    let quick = left
        .iter()
        .find(|file| file.contains("quick"))
        .expect("kept");
    assert!(
        quick.contains(r#""stage":"unmount""#),
        "its progress is on file: {quick}"
    );
    assert_eq!(slow.finished().await, Progress::Left);
    queue.wait_idle().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_enqueued_after_a_shutdown_is_done_by_the_next_start() {
    let place = tempfile::tempdir().expect("tempdir");
    let stages = FakeStages::new();
    let queue = open(place.path(), &stages);
    queue.shutdown(GRACE).await;
    let mut late = queue.enqueue(target("late"));
    assert!(late.durable);
    assert_eq!(late.finished().await, Progress::Left);
    sleep(Duration::from_secs(1)).await;
    assert!(stages.journal.lines().is_empty());
    let next = open(place.path(), &stages);
    next.wait_idle().await;
    assert_eq!(stages.journal.lines(), stages_of(Kind::Pea, "late"));
}

#[tokio::test(start_paused = true)]
async fn no_more_than_the_workers_run_at_a_time() {
    let place = tempfile::tempdir().expect("tempdir");
    let stages = FakeStages::new();
    let queue = open(place.path(), &stages);
    for number in 0..50 {
        let instance = format!("i{number}");
        stages.script(
            &instance,
            Stage::Trash,
            Script::Takes(Duration::from_secs(1)),
        );
        queue.enqueue(target(&instance));
    }
    queue.wait_idle().await;
    assert_eq!(stages.most_at_a_time(), options().workers);
    assert_eq!(stages.journal.lines().len(), 50 * 6);
}

#[tokio::test(start_paused = true)]
async fn a_direct_job_does_not_wait_for_workers() {
    let place = tempfile::tempdir().expect("tempdir");
    let stages = FakeStages::new();
    let queue = open(place.path(), &stages);
    for busy in ["a", "b", "c"] {
        stages.script(busy, Stage::Kill, Script::Takes(Duration::from_secs(9)));
        queue.enqueue(target(busy));
    }
    sleep(Duration::from_secs(1)).await;
    let asked = Instant::now();
    let mut ticket = queue.enqueue_direct(target("now"));
    assert_eq!(ticket.attempted().await, Progress::Done);
    assert!(asked.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn one_instance_is_torn_down_once_however_often_it_is_asked_for() {
    let place = tempfile::tempdir().expect("tempdir");
    let stages = FakeStages::new();
    let queue = open(place.path(), &stages);
    let first = queue.enqueue(target("a"));
    for _ in 0..10 {
        assert_eq!(queue.enqueue(target("a")).id, first.id);
    }
    assert_eq!(files(place.path()).len(), 1);
    queue.wait_idle().await;
    assert_eq!(stages.journal.lines(), stages_of(Kind::Pea, "a"));
}

#[tokio::test(start_paused = true)]
async fn a_job_that_cannot_be_put_on_file_is_done_all_the_same() {
    let place = tempfile::tempdir().expect("tempdir");
    let stages = FakeStages::new();
    let directory = place.path().join("queue");
    let queue = open(&directory, &stages);
    std::fs::remove_dir(&directory).expect("remove");
    let mut ticket = queue.enqueue(target("a"));
    assert!(!ticket.durable);
    assert_eq!(ticket.finished().await, Progress::Done);
    assert_eq!(stages.journal.lines(), stages_of(Kind::Pea, "a"));
}

/// A runtime that can be dropped in the middle of everything, as a crash does.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("runtime")
}

#[test]
fn a_crash_in_any_stage_is_taken_up_at_that_stage() {
    for stage in Stage::ALL {
        let place = tempfile::tempdir().expect("tempdir");
        let container = Target {
            kind: Kind::Container,
            ..target("a")
        };
        let first = runtime();
        first.block_on(async {
            let stages = FakeStages::new();
            stages.script("a", stage, Script::Never);
            let queue = open(place.path(), &stages);
            queue.enqueue(container);
            while queue.snapshot().stuck == 0 {
                sleep(Duration::from_secs(1)).await;
            }
        });
        drop(first);
        runtime().block_on(async {
            let stages = FakeStages::new();
            let queue = open(place.path(), &stages);
            queue.wait_idle().await;
            let all = stages_of(Kind::Container, "a");
            assert_eq!(stages.journal.lines(), all[stage as usize..]);
        });
        assert!(files(place.path()).is_empty());
    }
}

#[test]
fn a_crash_right_after_the_enqueue_loses_nothing_and_a_torn_file_blocks_nothing() {
    let place = tempfile::tempdir().expect("tempdir");
    let first = runtime();
    first.block_on(async {
        let queue = open(place.path(), &FakeStages::new());
        for instance in ["a", "b", "c"] {
            queue.enqueue(target(instance));
        }
    });
    drop(first);
    assert_eq!(files(place.path()).len(), 3);
    std::fs::write(place.path().join("torn.json"), "{\"version\":1").expect("write");
    runtime().block_on(async {
        let stages = FakeStages::new();
        let queue = open(place.path(), &stages);
        assert_eq!(queue.depth(), 3);
        queue.wait_idle().await;
        assert_eq!(stages.journal.lines().len(), 3 * 6);
    });
    assert!(place.path().join("torn.json.corrupt").exists());
}
