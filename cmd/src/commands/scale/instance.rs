//! One instance: a container with an app, brought up, asked for its health, and destroyed.
//!
//! All through the API, as a scheduler does it. [`measure`](super::measure) runs many at once; each
//! records its stages.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use garden::client::{Client, Wanted};
use garden::model::{ContainerSpec, Handle, ImageRef, ProcessId, ProcessSpec};
use tokio::io::AsyncReadExt;
use tokio::sync::watch;

use super::images::APP;
use super::stages::{Record, Stage};

/// Between a check that failed and the next.
const PAUSE: Duration = Duration::from_millis(20);
/// An app that is not healthy by then never will be.
const PATIENCE: Duration = Duration::from_secs(300);
const PORT: &str = "127.0.0.1:8080";

/// What all instances share.
pub(super) struct Common {
    pub(super) client: Client,
    pub(super) record: Record,
    /// The image of the containers.
    pub(super) image: String,
    /// The image of the peas that check.
    pub(super) checker: String,
    /// What each of them writes first, in MB.
    pub(super) check_mb: u16,
    /// The app as a tar, where it is streamed in.
    pub(super) app: Option<Bytes>,
    /// What waits to be cleaned up, looked at again and again.
    pub(super) pending: watch::Receiver<Pending>,
}

/// The peas that had not been cleaned up at some moment.
#[derive(Debug, Clone)]
pub(super) struct Pending {
    pub(super) asked: Instant,
    pub(super) peas: Vec<String>,
}

/// A healthy instance.
pub(super) struct Healthy {
    pub(super) handle: Handle,
    /// Checks that it took.
    pub(super) checks: usize,
    last: Check,
}

/// One check that ran.
struct Check {
    pea: ProcessId,
    code: i32,
    /// When its exit code arrived.
    replied: Instant,
    /// When it read the clock, as the last thing it did; only if it succeeded.
    ended: Option<Instant>,
}

impl Common {
    /// Brings an instance up; returns once it is healthy.
    pub(super) async fn bring_up(self: &Arc<Self>, number: usize) -> Result<Healthy> {
        let handle = self.create(number).await.context("creating")?;
        if let Some(app) = &self.app {
            let start = Instant::now();
            let tar = std::io::Cursor::new(app.clone());
            let streamed = self.client.stream_in(&handle, "vcap", APP, tar).await;
            streamed.context("streaming the app in")?;
            self.record
                .add(number, Stage::Stream, start, Instant::now());
        }
        let start = Instant::now();
        let spec = ProcessSpec {
            path: "/bin/httpd".to_owned(),
            args: ["-f", "-p", PORT, "-h", APP].map(str::to_owned).to_vec(),
            user: Some("vcap".to_owned()),
            ..ProcessSpec::default()
        };
        let app = self.client.run(&handle, &spec, Wanted::NONE).await;
        // Detached: it runs on.
        drop(app.context("starting the app")?);
        let running = Instant::now();
        self.record.add(number, Stage::Run, start, running);
        let mut checks = 0;
        let last = loop {
            let check = self.check(&handle).await.context("checking")?;
            checks += 1;
            if check.code == 0 {
                break check;
            }
            if running.elapsed() > PATIENCE {
                bail!("{checks} checks failed, the last one with {}", check.code);
            }
            tokio::time::sleep(PAUSE).await;
        };
        if let Some(ended) = last.ended {
            self.record
                .add(number, Stage::ExitToReply, ended, last.replied);
        }
        self.record.add(number, Stage::Check, running, last.replied);
        Ok(Healthy {
            handle,
            checks,
            last,
        })
    }

    async fn create(&self, number: usize) -> Result<Handle> {
        let spec = ContainerSpec {
            handle: Some(format!("instance-{number}").parse()?),
            image: Some(image(&self.image)),
            ..ContainerSpec::default()
        };
        let start = Instant::now();
        let handle = self.client.create(&spec).await?;
        self.record
            .add(number, Stage::Create, start, Instant::now());
        Ok(handle)
    }

    /// Asks the app for a file, in a pea. One that gets it becomes `adjtimex`, which tells the
    /// time to the microsecond (without a right to set it) and ends at once. That is the moment
    /// from which the exit is timed: a reading here, of when output arrives, would be late by
    /// whatever else this process has to do.
    async fn check(&self, handle: &Handle) -> Result<Check> {
        let write = match self.check_mb {
            0 => String::new(),
            // 1 MB is 10^6 bytes, as everywhere here.
            mb => format!(
                "dd if=/dev/zero of=/home/vcap/written bs=1000000 count={mb} 2>&- || exit 2; "
            ),
        };
        let ask =
            format!("wget -q -O /dev/null http://{PORT}/start.txt || exit 1; {write}exec adjtimex");
        let spec = ProcessSpec {
            id: Some(ProcessId::generate()),
            path: "/bin/sh".to_owned(),
            args: vec!["-c".to_owned(), ask],
            user: Some("vcap".to_owned()),
            image: Some(image(&self.checker)),
            ..ProcessSpec::default()
        };
        let wanted = Wanted {
            stdout: true,
            stderr: false,
        };
        let mut pea = self.client.run(handle, &spec, wanted).await?;
        let code = pea.wait().await?;
        let (replied, now) = (Instant::now(), SystemTime::now());
        let mut stdout = pea.stdout.take().context("a pea without output")?;
        let mut text = String::new();
        stdout
            .read_to_string(&mut text)
            .await
            .context("its output")?;
        let ended = match clock(&text) {
            // A clock that was set back meanwhile would make it later than now.
            Some(clock) => replied.checked_sub(now.duration_since(clock).unwrap_or_default()),
            None => None,
        };
        if code == 0 && ended.is_none() {
            bail!("busybox's adjtimex did not tell the time: {text:?}");
        }
        Ok(Check {
            pea: pea.id.clone(),
            code,
            replied,
            ended,
        })
    }

    /// Waits until nothing is left of the check that succeeded.
    pub(super) async fn torn_down(&self, number: usize, healthy: &Healthy) -> Result<()> {
        let check = &healthy.last;
        let gone = |pending: &Pending| {
            let left = pending.peas.iter().any(|pea| pea == check.pea.as_str());
            pending.asked > check.replied && !left
        };
        let mut pending = self.pending.clone();
        let asked = pending.wait_for(gone).await?.asked;
        let start = check.ended.unwrap_or(check.replied);
        self.record.add(number, Stage::Teardown, start, asked);
        Ok(())
    }

    /// Destroys the instance.
    pub(super) async fn destroy(&self, number: usize, handle: &Handle) -> Result<()> {
        let start = Instant::now();
        self.client.destroy(handle).await.context("destroying")?;
        self.record
            .add(number, Stage::Destroy, start, Instant::now());
        Ok(())
    }

    /// Runs a check in a container of the checker's image, so that what is made once is there
    /// before anything is measured.
    pub(super) async fn warm_up(&self) -> Result<()> {
        let spec = ContainerSpec {
            image: Some(image(&self.checker)),
            ..ContainerSpec::default()
        };
        let handle = self.client.create(&spec).await?;
        // There is no app: that it fails is right.
        self.check(&handle).await?;
        self.client.destroy(&handle).await?;
        let left = self.client.teardown_wait(PATIENCE).await?;
        if left.depth > 0 {
            bail!(
                "the first pea is not cleaned up after {} s",
                PATIENCE.as_secs()
            );
        }
        Ok(())
    }
}

fn image(uri: &str) -> ImageRef {
    ImageRef {
        uri: uri.to_owned(),
        ..ImageRef::default()
    }
}

/// The time in what busybox's `adjtimex` prints.
fn clock(text: &str) -> Option<SystemTime> {
    let field = |name: &str| {
        let value = text.lines().find_map(|line| line.trim().strip_prefix(name));
        value?.trim().parse::<u64>().ok()
    };
    let seconds = Duration::from_secs(field("time.tv_sec:")?);
    let rest = Duration::from_micros(field("time.tv_usec:")?);
    Some(SystemTime::UNIX_EPOCH + seconds + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_of_a_check() {
        let text =
            "-t  tick:         10000 us\n    time.tv_sec:  1700000000\n    time.tv_usec: 436846\n";
        let expected = SystemTime::UNIX_EPOCH + Duration::from_micros(1_700_000_000_436_846);
        assert_eq!(clock(text), Some(expected));
        assert_eq!(clock("done"), None);
    }
}
