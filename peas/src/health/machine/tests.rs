//! The state machine with a clock of numbers: by example, and what holds for any run of it.

use proptest::prelude::*;

use super::HealthState::{Ready, Starting, Unhealthy, Unready};
use super::*;

fn rule() -> Rule {
    Rule {
        successes: 2,
        failures: 2,
        start_period: Duration::ZERO,
        ..Rule::default()
    }
}

fn health(checks: &[(&str, Role)]) -> Health {
    let mut health = Health::default();
    for (name, role) in checks {
        health.put(name, *role, rule(), 0);
    }
    health.settle(0, "made");
    health
}

fn end(passed: bool) -> Ended {
    Ended {
        passed,
        output: "said so".to_owned(),
        at_ns: 0,
    }
}

fn run(health: &mut Health, name: &str, ends: &[bool]) -> HealthState {
    for passed in ends {
        health.observe(name, &end(*passed), 0);
    }
    health.state()
}

#[test]
fn thresholds_count_in_a_row() {
    let mut health = health(&[("r", Role::Readiness)]);
    assert_eq!(run(&mut health, "r", &[true, false, true]), Starting);
    assert_eq!(run(&mut health, "r", &[true]), Ready);
    assert_eq!(run(&mut health, "r", &[false, true, false]), Ready);
    assert_eq!(run(&mut health, "r", &[false]), Unready);
    assert_eq!(run(&mut health, "r", &[true, true]), Ready);
    let states: Vec<_> = health.history().map(|change| change.to).collect();
    assert_eq!(states, [Ready, Unready, Ready]);
    let change = health.history().nth(1).unwrap();
    assert_eq!(change.reason, "readiness check r failed 2 times");
    assert_eq!(change.output, "said so");
}

#[test]
fn startup_gates_the_others_and_is_not_made_again() {
    let mut health = health(&[
        ("s", Role::Startup),
        ("r", Role::Readiness),
        ("l", Role::Liveness),
    ]);
    assert_eq!(health.next("s"), Next::After(Duration::ZERO));
    assert_eq!(health.next("r"), Next::Gated);
    assert_eq!(run(&mut health, "s", &[true]), Starting);
    assert_eq!(health.next("l"), Next::Gated);
    run(&mut health, "s", &[true]);
    assert_eq!(health.next("s"), Next::Over);
    assert_eq!(health.next("l"), Next::After(Duration::ZERO));
    assert_eq!(run(&mut health, "r", &[true, true]), Starting);
    assert_eq!(run(&mut health, "l", &[true, true]), Ready);
    assert_eq!(health.next("l"), Next::After(rule().interval));
}

#[test]
fn a_startup_that_fails_is_unhealthy_until_it_passes() {
    let mut health = health(&[("s", Role::Startup), ("r", Role::Readiness)]);
    assert_eq!(run(&mut health, "s", &[false, false]), Unhealthy);
    assert_eq!(health.next("s"), Next::After(rule().interval));
    assert_eq!(health.next("r"), Next::Gated);
    assert_eq!(run(&mut health, "s", &[true, true]), Starting);
    assert_eq!(run(&mut health, "r", &[true, true]), Ready);
}

#[test]
fn a_liveness_check_that_fails_is_unhealthy_and_readiness_never_is() {
    let mut health = health(&[("r", Role::Readiness), ("l", Role::Liveness)]);
    assert_eq!(run(&mut health, "r", &[false; 1000]), Starting);
    run(&mut health, "r", &[true, true]);
    assert_eq!(run(&mut health, "l", &[true, true]), Ready);
    assert_eq!(run(&mut health, "r", &[false; 1000]), Unready);
    assert_eq!(run(&mut health, "l", &[false, false]), Unhealthy);
    assert_eq!(run(&mut health, "l", &[true, true]), Unready);
}

#[test]
fn failures_in_the_start_period_do_not_count() {
    let mut health = Health::default();
    let rule = Rule {
        start_period: Duration::from_secs(10),
        ..rule()
    };
    health.put("l", Role::Liveness, rule.clone(), 1_000);
    for at_ms in [1_000, 5_000, 10_999] {
        assert_eq!(health.observe("l", &end(false), at_ms).change, None);
        assert_eq!(health.next("l"), Next::After(rule.start_interval));
    }
    health.observe("l", &end(false), 11_000);
    assert_eq!(health.state(), Starting);
    health.observe("l", &end(false), 11_001);
    assert_eq!(health.state(), Unhealthy);
}

#[test]
fn the_start_period_of_one_that_waits_begins_with_its_first_run() {
    let mut health = Health::default();
    let patient = Rule {
        start_period: Duration::from_secs(1),
        ..rule()
    };
    health.put("s", Role::Startup, rule(), 0);
    health.put("l", Role::Liveness, patient, 0);
    health.observe("s", &end(true), 60_000);
    health.observe("s", &end(true), 61_000);
    for at_ms in [61_000, 61_500, 61_999] {
        health.observe("l", &end(false), at_ms);
    }
    assert_eq!(health.state(), Starting);
}

#[test]
fn new_checks_mean_starting_again_and_the_old_ones_are_still_known() {
    let mut health = health(&[("r", Role::Readiness)]);
    run(&mut health, "r", &[true, true]);
    health.put("l", Role::Liveness, rule(), 0);
    let change = health.settle(7, "check l was set").unwrap();
    assert_eq!((change.from, change.to, change.at_ms), (Ready, Starting, 7));
    assert_eq!(run(&mut health, "l", &[true, true]), Ready);
    health.remove("l");
    assert_eq!(health.settle(8, "check l was removed"), None);
}

#[test]
fn what_is_stopped_is_not_ready_and_not_checked() {
    let mut health = health(&[("r", Role::Readiness)]);
    run(&mut health, "r", &[true, true]);
    assert_eq!(health.suspend(1, "stopped").unwrap().to, Unready);
    assert_eq!(health.next("r"), Next::Over);
    assert_eq!(run(&mut health, "r", &[true, true]), Unready);
    assert_eq!(health.suspend(2, "stopped"), None);
}

#[test]
fn it_goes_on_where_it_was_saved() {
    let checks = [("s", Role::Startup), ("r", Role::Readiness)];
    let mut first = health(&checks);
    run(&mut first, "s", &[true, true]);
    run(&mut first, "r", &[true, true]);
    let text = serde_json::to_string(&first.saved()).unwrap();
    let mut second = Health::default();
    for (name, role) in checks {
        second.put(name, role, rule(), 99);
    }
    second.resume(serde_json::from_str(&text).unwrap());
    assert_eq!(second.saved(), first.saved());
    assert_eq!(second.next("s"), Next::Over);
    assert_eq!(second.next("r"), Next::After(rule().start_interval));
    assert_eq!(run(&mut second, "r", &[false, false]), Unready);
}

#[derive(Debug, Clone)]
enum Step {
    Observe(usize, bool, u64),
    Put(usize),
    Remove(usize),
    Suspend,
    Restart,
}

const NAMES: [(&str, Role); 4] = [
    ("s", Role::Startup),
    ("r", Role::Readiness),
    ("q", Role::Readiness),
    ("l", Role::Liveness),
];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let which = 0..NAMES.len();
    let step = prop_oneof![
        40 => (which.clone(), any::<bool>(), 0_u64..3_000)
            .prop_map(|(check, passed, later)| Step::Observe(check, passed, later)),
        2 => which.clone().prop_map(Step::Put),
        1 => which.prop_map(Step::Remove),
        1 => Just(Step::Suspend),
        2 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 0..200)
}

fn restarted(health: &Health, rule: &Rule) -> Health {
    let mut next = Health::default();
    for (name, role) in NAMES {
        if health.verdict(name).is_some() {
            next.put(name, role, rule.clone(), 0);
        }
    }
    next.resume(health.saved());
    next.suspended = health.suspended;
    next
}

proptest! {
    #[test]
    fn the_state_is_always_justified(
        steps in steps(),
        successes in 1_u32..4,
        failures in 1_u32..4,
        start_period in 0_u64..5_000,
    ) {
        let rule = Rule {
            successes,
            failures,
            start_period: Duration::from_millis(start_period),
            ..Rule::default()
        };
        let mut health = Health::default();
        let mut now = 0;
        let mut seen = health.state();
        for step in steps {
            let observed = matches!(step, Step::Observe(..));
            let change = match step {
                Step::Observe(check, passed, later) => {
                    now += later;
                    let name = NAMES[check].0;
                    // As whoever runs the checks does: only those that are not held back.
                    if !matches!(health.next(name), Next::After(_)) {
                        continue;
                    }
                    health.observe(name, &end(passed), now).change
                }
                Step::Put(check) => {
                    let (name, role) = NAMES[check];
                    health.put(name, role, rule.clone(), now);
                    health.settle(now, "put")
                }
                Step::Remove(check) => {
                    health.remove(NAMES[check].0);
                    health.settle(now, "removed")
                }
                Step::Suspend => health.suspend(now, "stopped"),
                Step::Restart => {
                    health = restarted(&health, &rule);
                    None
                }
            };
            // Each change is told, starts where the last one ended, and leads somewhere else.
            match &change {
                Some(change) => {
                    prop_assert_eq!(change.from, seen);
                    prop_assert_ne!(change.from, change.to);
                    prop_assert_eq!(health.history().last(), Some(change));
                    seen = change.to;
                }
                None => prop_assert_eq!(health.state(), seen),
            }
            prop_assert_eq!(health.state(), seen);
            prop_assert!(health.history().count() <= HISTORY);
            // A run never makes what was ready a starting one.
            if let Some(change) = change.filter(|_| observed) {
                prop_assert!(
                    !(change.to == Starting && matches!(change.from, Ready | Unready))
                );
            }
            if health.suspended {
                prop_assert!(matches!(health.state(), Unready | Unhealthy));
                continue;
            }
            let of = |role: Role| {
                let verdicts = NAMES.iter().filter(move |(_, r)| *r == role);
                verdicts.filter_map(|(name, _)| health.verdict(name)).collect::<Vec<_>>()
            };
            let (startup, readiness, liveness) =
                (of(Role::Startup), of(Role::Readiness), of(Role::Liveness));
            let passing = |list: &[Verdict]| list.iter().all(|v| *v == Verdict::Passing);
            let failing = |list: &[Verdict]| list.contains(&Verdict::Failing);
            let broken = failing(&startup) || failing(&liveness);
            prop_assert_eq!(health.state() == Unhealthy, broken);
            let ready = passing(&startup) && passing(&readiness) && passing(&liveness);
            if observed {
                prop_assert_eq!(health.state() == Ready, ready);
            }
            for (name, role) in NAMES {
                if role != Role::Startup && health.verdict(name).is_some() {
                    prop_assert_eq!(health.next(name) == Next::Gated, !passing(&startup));
                }
            }
        }
    }
}
