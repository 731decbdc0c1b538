//! The peas of one container: names, list, and the end of them all.
//!
//! One per container, so that no lock is shared between containers and pea ids need to be unique
//! only within theirs. The lock guards a table in memory and is never held across an await.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::parts::{ErrorOf, ExitOf, Host, OrderOf, PeaName, ProcessOf};
use crate::run::{Found, Names, Pea, Policy, RunError, adopt_pea, run_pea};

/// A pea that has not ended.
struct Live<Exit> {
    instance: String,
    /// `None` while it starts.
    pea: Option<Pea<Exit>>,
}

struct Table<Exit> {
    live: HashMap<String, Live<Exit>>,
    closed: bool,
}

struct Shared<Exit> {
    table: Mutex<Table<Exit>>,
    /// How many are in the table.
    count: watch::Sender<usize>,
}

impl<Exit> Shared<Exit> {
    fn table(&self) -> MutexGuard<'_, Table<Exit>> {
        // No code under the lock can leave the table half changed, even if it panics.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<Exit: Clone + Send + Sync> Names<Exit> for Shared<Exit> {
    fn started(&self, pea: &Pea<Exit>) {
        if let Some(live) = self.table().live.get_mut(&pea.name.process)
            && live.instance == pea.instance
        {
            live.pea = Some(pea.clone());
        }
    }

    fn release(&self, name: &PeaName, instance: &str) {
        let mut table = self.table();
        let ours = |live: &Live<Exit>| live.instance == instance;
        if table.live.get(&name.process).is_some_and(ours) {
            table.live.remove(&name.process);
        }
        self.count.send_replace(table.live.len());
    }
}

/// The peas of one container.
pub struct PeaSet<H: Host> {
    host: Arc<H>,
    policy: Policy,
    doom: CancellationToken,
    shared: Arc<Shared<ExitOf<H>>>,
}

impl<H: Host> PeaSet<H> {
    /// No peas yet.
    pub fn new(host: Arc<H>, policy: Policy) -> Self {
        let table = Table {
            live: HashMap::new(),
            closed: false,
        };
        Self {
            host,
            policy,
            doom: CancellationToken::new(),
            shared: Arc::new(Shared {
                table: Mutex::new(table),
                count: watch::Sender::new(0),
            }),
        }
    }

    /// Runs a pea; see [`run_pea`]. Its process id is taken until its exit is announced, and free
    /// from then on, whatever its teardown is doing.
    ///
    /// # Errors
    /// Also when the id is taken, or the container is being destroyed.
    pub async fn run(&self, order: OrderOf<H>) -> Result<Pea<ExitOf<H>>, RunError<ErrorOf<H>>> {
        self.reserve(&order.name, &order.instance)?;
        let names: Arc<dyn Names<ExitOf<H>>> = self.shared.clone();
        let doom = self.doom.child_token();
        run_pea(Arc::clone(&self.host), order, self.policy, doom, names).await
    }

    /// Takes up a pea that outlived the server that started it; see [`adopt_pea`].
    ///
    /// # Errors
    /// When its process id is taken, or the container is being destroyed.
    pub fn adopt(
        &self,
        found: Found<ProcessOf<H>>,
    ) -> Result<Pea<ExitOf<H>>, RunError<ErrorOf<H>>> {
        self.reserve(&found.name, &found.instance)?;
        let names: Arc<dyn Names<ExitOf<H>>> = self.shared.clone();
        let doom = self.doom.child_token();
        let host = Arc::clone(&self.host);
        Ok(adopt_pea(host, found, self.policy, doom, names))
    }

    fn reserve(&self, name: &PeaName, instance: &str) -> Result<(), RunError<ErrorOf<H>>> {
        let mut table = self.shared.table();
        if table.closed {
            return Err(RunError::Destroyed(name.clone()));
        }
        if table.live.contains_key(&name.process) {
            return Err(RunError::InUse(name.clone()));
        }
        let live = Live {
            instance: instance.to_owned(),
            pea: None,
        };
        table.live.insert(name.process.clone(), live);
        self.shared.count.send_replace(table.live.len());
        Ok(())
    }

    /// A pea that runs.
    pub fn get(&self, process: &str) -> Option<Pea<ExitOf<H>>> {
        self.shared.table().live.get(process)?.pea.clone()
    }

    /// The peas that run, in no order.
    pub fn running(&self) -> Vec<Pea<ExitOf<H>>> {
        let table = self.shared.table();
        table.live.values().filter_map(|l| l.pea.clone()).collect()
    }

    /// Destroys all peas, for good: none can be run afterwards, each has its teardown handed over
    /// and is killed, those that are starting are undone. Waits for their exits, at most `patience`
    /// long, and returns the process ids of those that have not ended by then. (Their teardowns go
    /// on killing them.)
    pub async fn destroy(&self, patience: Duration) -> Vec<String> {
        self.shared.table().closed = true;
        self.doom.cancel();
        let mut count = self.shared.count.subscribe();
        let all_gone = count.wait_for(|count| *count == 0);
        if timeout(patience, all_gone)
            .await
            .is_ok_and(|gone| gone.is_ok())
        {
            return Vec::new();
        }
        let mut left: Vec<_> = self.shared.table().live.keys().cloned().collect();
        left.sort();
        left
    }
}
