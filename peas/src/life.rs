//! The life of a pea as a state machine: which events lead where, and what is done, in which order.
//!
//! ```text
//!             started                exited
//! Starting ───────────▶ Running ──────────────▶ Ended     teardown queued, THEN announced
//!    │ │                   │ destroy               ▲
//!    │ └─ destroy,         ▼                       │ exited
//!    │    then started ─▶ Dying ───────────────────┘      teardown queued and killed on entry
//!    │ failed
//!    └─────────────────▶ Undone                           torn down, THEN the error is returned
//! ```
//!
//! The laws: a teardown is handed over exactly once in every life, before the exit or the error is
//! told to anybody; between an exit and its announcement there is nothing but that and the release
//! of the name. Pure; [`crate::run_pea`] carries it out.

/// When the teardown is done, seen from the one who waits for the exit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TeardownMode {
    /// After the exit was announced.
    #[default]
    Queued,
    /// Its first try ends before the exit is announced, as Guardian has it. For comparison only.
    Inline,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Starting { doomed: bool },
    Running,
    Dying,
    Ended,
    Undone,
}

/// What happens to a pea.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    Started,
    StartFailed,
    Destroy,
    Exited,
}

/// What is done then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Tell the caller that it runs.
    Reply,
    /// Tell the caller that it does not.
    ReplyError,
    /// Hand the teardown over.
    Enqueue,
    /// Hand the teardown over and wait for its first try, however long it takes.
    TearDownInline,
    /// Hand the teardown over and wait for its first try, within patience.
    Undo,
    /// Send SIGKILL.
    Kill,
    /// Free the name for the next pea.
    Release,
    /// Tell everybody who waits how it ended.
    Announce,
}

/// One pea's life.
#[derive(Debug)]
pub(crate) struct Life {
    state: State,
    mode: TeardownMode,
}

impl Life {
    pub(crate) fn new(mode: TeardownMode) -> Self {
        Self {
            state: State::Starting { doomed: false },
            mode,
        }
    }

    /// Whether nothing can happen any more.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.state, State::Ended | State::Undone)
    }

    /// Whether a destroy could still change something.
    pub(crate) fn heeds_destroy(&self) -> bool {
        matches!(
            self.state,
            State::Running | State::Starting { doomed: false }
        )
    }

    /// Steps on, and says what to do. An event that cannot happen in a state changes nothing.
    pub(crate) fn on(&mut self, event: Event) -> &'static [Action] {
        use Action::{Announce, Enqueue, Kill, Release, Reply, ReplyError, TearDownInline, Undo};
        let (next, actions): (State, &'static [Action]) = match (self.state, event) {
            (State::Starting { .. }, Event::StartFailed) => {
                (State::Undone, &[Undo, Release, ReplyError])
            }
            (State::Starting { doomed: false }, Event::Started) => (State::Running, &[Reply]),
            (State::Starting { doomed: true }, Event::Started) => {
                (State::Dying, &[Enqueue, Kill, Reply])
            }
            (State::Starting { .. }, Event::Destroy) => (State::Starting { doomed: true }, &[]),
            (State::Running, Event::Destroy) => (State::Dying, &[Enqueue, Kill]),
            (State::Running, Event::Exited) => match self.mode {
                TeardownMode::Queued => (State::Ended, &[Enqueue, Release, Announce]),
                TeardownMode::Inline => (State::Ended, &[TearDownInline, Release, Announce]),
            },
            (State::Dying, Event::Exited) => (State::Ended, &[Release, Announce]),
            (state, _) => (state, &[]),
        };
        self.state = next;
        actions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: [Event; 4] = [
        Event::Started,
        Event::StartFailed,
        Event::Destroy,
        Event::Exited,
    ];

    /// Every life of up to this many events, possible in practice or not.
    fn lives(length: usize, mode: TeardownMode) -> Vec<(Life, Vec<Action>)> {
        let runs = EVENTS.len().pow(u32::try_from(length).expect("short"));
        (0..runs)
            .map(|run| {
                let mut life = Life::new(mode);
                let mut done = Vec::new();
                for place in 0..length {
                    let power = u32::try_from(place).expect("short");
                    let event = EVENTS[run / EVENTS.len().pow(power) % EVENTS.len()];
                    done.extend_from_slice(life.on(event));
                }
                (life, done)
            })
            .collect()
    }

    fn hands_over(action: &Action) -> bool {
        matches!(
            action,
            Action::Enqueue | Action::TearDownInline | Action::Undo
        )
    }

    fn tells(action: &Action) -> bool {
        matches!(action, Action::Announce | Action::ReplyError)
    }

    #[test]
    fn no_life_breaks_a_law() {
        for mode in [TeardownMode::Queued, TeardownMode::Inline] {
            for (life, done) in lives(6, mode) {
                let first = |wanted: &dyn Fn(&Action) -> bool| done.iter().position(wanted);
                let count = |wanted: &dyn Fn(&Action) -> bool| {
                    done.iter().filter(|action| wanted(action)).count()
                };
                assert!(count(&hands_over) <= 1, "torn down twice: {done:?}");
                assert!(count(&tells) <= 1, "told twice: {done:?}");
                assert_eq!(count(&tells), usize::from(life.is_over()), "{done:?}");
                if let Some(told) = first(&tells) {
                    assert!(first(&hands_over) < Some(told), "told too early: {done:?}");
                    assert!(first(&hands_over).is_some(), "never torn down: {done:?}");
                    assert_eq!(done[told - 1], Action::Release, "name not free: {done:?}");
                }
                if let Some(announced) = first(&|a| *a == Action::Announce) {
                    assert!(
                        first(&|a| *a == Action::Reply) < Some(announced),
                        "{done:?}"
                    );
                }
                if let Some(killed) = first(&|a| *a == Action::Kill) {
                    assert!(first(&hands_over) < Some(killed), "{done:?}");
                }
            }
        }
    }

    #[test]
    fn an_exit_is_announced_after_the_teardown_is_on_file_and_nothing_else() {
        let mut life = Life::new(TeardownMode::Queued);
        assert_eq!(life.on(Event::Started), [Action::Reply]);
        assert_eq!(
            life.on(Event::Exited),
            [Action::Enqueue, Action::Release, Action::Announce]
        );
        assert!(life.is_over());
        assert_eq!(life.on(Event::Destroy), []);
    }

    #[test]
    fn a_pea_destroyed_while_it_starts_is_killed_as_soon_as_it_runs() {
        let mut life = Life::new(TeardownMode::Queued);
        assert_eq!(life.on(Event::Destroy), []);
        assert!(!life.heeds_destroy());
        assert_eq!(
            life.on(Event::Started),
            [Action::Enqueue, Action::Kill, Action::Reply]
        );
        assert_eq!(life.on(Event::Exited), [Action::Release, Action::Announce]);
    }
}
