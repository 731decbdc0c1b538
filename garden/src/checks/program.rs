//! A check that is a program: one run of it, in the container or as a pea.
//!
//! Called by the task of the check. A run is a process like any other, only that it has a control
//! group of its own and that nothing of it stays: the teardown queue takes away group, root
//! filesystem and records. A run that takes too long is killed; until it is gone no other is
//! started, so that what cannot be killed does not pile up.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use garden_peas::health::Ended;
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::RUN;
use super::spec::{CheckSpec, ExecProbe, Probe};
use super::text::{Lines, Secrets, Tail};
use crate::container::Container;
use crate::container::process::ProcessEntry;
use crate::events::EventKind;
use crate::manager::start_process;
use crate::model::{Exit, ProcessId, ProcessSpec, Signal};
use crate::process::{Attachment, Control};

/// Lines of one run that become events.
const MOST_LINES: usize = 100;
/// How long the end of a failed run waits for the end of its output, which something that it left
/// behind may hold open.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// A check that is a program.
pub(super) struct Program {
    container: Weak<Container>,
    check: String,
    exec: ExecProbe,
    /// Held by a run until its process is gone.
    busy: Arc<Mutex<()>>,
}

/// Brings the image of a check into the store, so that no run is late for it. What goes wrong here
/// will go wrong, and be told, in the run.
pub(super) async fn prepare(container: &Weak<Container>, spec: &CheckSpec) {
    let Probe::Exec(exec) = &spec.probe else {
        return;
    };
    let (Some(image), Some(container)) = (exec.image.clone(), container.upgrade()) else {
        return;
    };
    let services = Arc::clone(&container.services);
    drop(container);
    let roots = Arc::clone(&services.roots);
    let (progress, _nobody) = mpsc::channel(1);
    let pulled = services.images.run(move || roots.pull(&image, &progress));
    if let Ok(Err(error)) = pulled.await {
        tracing::debug!(
            check = spec.name,
            error = error.report(),
            "its image is not there yet"
        );
    }
}

impl Program {
    /// The program of a check.
    pub(super) fn new(container: Weak<Container>, spec: &CheckSpec) -> Self {
        let exec = match &spec.probe {
            Probe::Exec(exec) => ExecProbe::clone(exec),
            Probe::Tcp(_) | Probe::Http(_) => ExecProbe::default(),
        };
        Self {
            container,
            check: spec.name.clone(),
            exec,
            busy: Arc::default(),
        }
    }

    /// Runs it once. Dropping the future kills the run.
    pub(super) fn run(&self, number: u64) -> impl Future<Output = Ended> + use<> {
        let (container, busy) = (self.container.clone(), Arc::clone(&self.busy));
        let (check, exec) = (self.check.clone(), self.exec.clone());
        async move {
            // One that was killed and is not gone yet takes this one's time.
            let alone = busy.lock_owned().await;
            let doom = CancellationToken::new();
            let _dropped = doom.clone().drop_guard();
            let (tell, told) = oneshot::channel();
            // On a task of its own: what has begun to start must be seen to its end.
            tokio::spawn(async move {
                let ended = match container.upgrade() {
                    Some(container) => live(&container, &check, &exec, number, &doom).await,
                    None => Ended::failed("the container is gone"),
                };
                drop(alone);
                let _ = tell.send(ended);
            });
            let lost = |_| Ended::failed("the run was lost; see the server's log");
            told.await.unwrap_or_else(lost)
        }
    }
}

/// From the start of a run to its end.
async fn live(
    container: &Arc<Container>,
    check: &str,
    exec: &ExecProbe,
    number: u64,
    doom: &CancellationToken,
) -> Ended {
    let record = container.record();
    let Ok(id) = format!("{RUN}{check}:{number}").parse::<ProcessId>() else {
        return Ended::failed("its name cannot be used");
    };
    let image = match (&exec.image, exec.pea) {
        (Some(image), _) => Some(image.clone()),
        (None, true) => record.spec.image.clone(),
        (None, false) => None,
    };
    if container.is_destroying() {
        return Ended::failed("the container is being destroyed");
    }
    let spec = ProcessSpec {
        id: Some(id),
        path: exec.path.clone(),
        args: exec.args.clone(),
        env: exec.env.clone(),
        dir: exec.dir.clone(),
        user: exec.user.clone(),
        own_limits: image.as_ref().and(exec.limits.clone()),
        image,
        check: true,
        ..ProcessSpec::default()
    };
    let (entry, attachment) = match start_process(Arc::clone(container), spec).await {
        Ok(started) => started,
        Err(error) => return Ended::failed(error.report()),
    };
    let secrets = Secrets::of(record.spec.env.iter().chain(&exec.env));
    let mut output = Output {
        container,
        check,
        secrets,
        tail: Tail::default(),
        lines: exec.long_lived.then(Lines::default),
        told: 0,
    };
    let exit = output.follow(attachment, &entry, doom).await;
    let at_ns = entry.reaped_at_ns();
    container.unreserve(&entry);
    let said = output.tail.text(&output.secrets);
    let (passed, output) = match exit {
        Some(Exit { code: 0, .. }) => (true, said),
        Some(exit) => (false, failure(exit, &said)),
        None => (false, "sight of it was lost".to_owned()),
    };
    Ended {
        passed,
        output,
        at_ns,
    }
}

/// The exit, once it is known; `None` when nobody will tell.
async fn ended(exit: &mut watch::Receiver<Option<Exit>>) -> Option<Exit> {
    let known = exit.wait_for(Option::is_some).await;
    known.ok().and_then(|exit| *exit)
}

fn failure(exit: Exit, said: &str) -> String {
    let why = if exit.out_of_memory {
        ", out of memory"
    } else {
        ""
    };
    let said = if said.is_empty() {
        ""
    } else {
        &format!(": {said}")
    };
    format!("exit code {}{why}{said}", exit.code)
}

/// What a run writes, on its way.
struct Output<'a> {
    container: &'a Arc<Container>,
    check: &'a str,
    secrets: Secrets,
    tail: Tail,
    /// For a long-lived check.
    lines: Option<Lines>,
    told: usize,
}

impl Output<'_> {
    /// Takes everything that the run writes until it ends; kills it when it is doomed.
    async fn follow(
        &mut self,
        attachment: Attachment,
        entry: &ProcessEntry,
        doom: &CancellationToken,
    ) -> Option<Exit> {
        let Attachment {
            mut stdout,
            mut stderr,
            control,
            mut exit,
            ..
        } = attachment;
        let _ = control.send(Control::CloseStdin).await;
        let (mut open_out, mut open_err, mut doomed) = (true, true, false);
        let ended = loop {
            tokio::select! {
                biased;
                ended = ended(&mut exit) => break ended,
                () = doom.cancelled(), if !doomed => {
                    doomed = true;
                    match self.container.peas().get(entry.id.as_str()) {
                        Some(pea) => pea.destroy(),
                        None => {
                            let _ = control.send(Control::Signal(Signal::Kill)).await;
                        }
                    }
                }
                piece = stdout.recv(), if open_out => self.take(piece, &mut open_out),
                piece = stderr.recv(), if open_err => self.take(piece, &mut open_err),
            }
        };
        // A short run may have ended before it was attached to. News of a success does not wait for
        // what it said.
        let passed = ended.is_some_and(|exit| exit.code == 0);
        if !passed || self.lines.is_some() {
            let rest = async {
                while open_out || open_err {
                    tokio::select! {
                        piece = stdout.recv(), if open_out => self.take(piece, &mut open_out),
                        piece = stderr.recv(), if open_err => self.take(piece, &mut open_err),
                    }
                }
            };
            let _ = tokio::time::timeout(LAST_WORDS, rest).await;
        }
        for stream in [&mut stdout, &mut stderr] {
            while let Ok(piece) = stream.try_recv() {
                self.take(Some(piece), &mut true);
            }
        }
        ended
    }

    fn take(&mut self, piece: Option<Bytes>, open: &mut bool) {
        let Some(piece) = piece else {
            *open = false;
            return;
        };
        self.tail.add(&piece);
        let Some(lines) = &mut self.lines else { return };
        let (container, check, secrets) = (self.container, self.check, &self.secrets);
        let told = &mut self.told;
        lines.add(&piece, |line| {
            *told += 1;
            let line = match *told {
                ..=MOST_LINES => secrets.blank(line),
                count if count == MOST_LINES + 1 => "further lines are not told".to_owned(),
                _ => return,
            };
            let check = check.to_owned();
            container.event(EventKind::CheckOutput { check, line }, None);
        });
    }
}
