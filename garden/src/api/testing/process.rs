//! A process that plays: what it does is told by its path.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::{Notify, Semaphore, mpsc, watch};

use crate::model::{Exit, ProcessId, ProcessSpec, Signal};
use crate::process::{Attachment, Control};

/// One process, its attachments, and what its users asked of it.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) spec: ProcessSpec,
    id: ProcessId,
    outputs: Mutex<Vec<[mpsc::Sender<Bytes>; 2]>>,
    wishes: Mutex<VecDeque<Control>>,
    wished: Notify,
    exit: watch::Sender<Option<Exit>>,
}

impl Process {
    pub(super) fn start(id: ProcessId, spec: ProcessSpec) -> (Arc<Self>, Attachment) {
        let process = Arc::new(Self {
            id,
            spec,
            outputs: Mutex::default(),
            wishes: Mutex::default(),
            wished: Notify::new(),
            exit: watch::Sender::new(None),
        });
        let attachment = process.attach();
        tokio::spawn(Arc::clone(&process).live());
        (process, attachment)
    }

    pub(super) fn attach(self: &Arc<Self>) -> Attachment {
        let (stdout, stdout_receiver) = mpsc::channel(16);
        let (stderr, stderr_receiver) = mpsc::channel(16);
        if !self.ended() {
            self.outputs.lock().unwrap().push([stdout, stderr]);
        }
        let (control, mut wishes) = mpsc::channel(4);
        let process = Arc::clone(self);
        tokio::spawn(async move {
            while let Some(wish) = wishes.recv().await {
                process.wishes.lock().unwrap().push_back(wish);
                process.wished.notify_one();
            }
        });
        let closed = Semaphore::new(0);
        closed.close();
        Attachment {
            id: self.id.clone(),
            stdout: stdout_receiver,
            stderr: stderr_receiver,
            control,
            // Nobody is to wait: all wishes are kept here.
            input_room: Arc::new(closed),
            exit: self.exit.subscribe(),
        }
    }

    pub(crate) fn ended(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// Ends it like a signal from elsewhere.
    pub(super) fn wish(&self, wish: Control) {
        self.wishes.lock().unwrap().push_back(wish);
        self.wished.notify_one();
    }

    /// The next wish of a user.
    async fn wished(&self) -> Control {
        loop {
            if let Some(wish) = self.wishes.lock().unwrap().pop_front() {
                return wish;
            }
            self.wished.notified().await;
        }
    }

    async fn write(&self, side: usize, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        let sinks: Vec<_> = {
            let outputs = self.outputs.lock().unwrap();
            outputs.iter().map(|both| both[side].clone()).collect()
        };
        for sink in sinks {
            let _ = sink.send(bytes.clone()).await;
        }
    }

    async fn live(self: Arc<Self>) {
        let code = self.play().await;
        let exit = Exit {
            code,
            out_of_memory: false,
        };
        // A grandchild that holds the pipes does so until the process is forgotten.
        if self.spec.path != "leave-a-grandchild" {
            self.outputs.lock().unwrap().clear();
        }
        self.exit.send_replace(Some(exit));
    }

    async fn play(&self) -> i32 {
        let argument = |index: usize| self.spec.args.get(index).map_or("", String::as_str);
        match self.spec.path.as_str() {
            "exit" => argument(0).parse().unwrap(),
            "echo" => {
                self.write(0, argument(0).to_owned()).await;
                self.write(1, argument(1).to_owned()).await;
                0
            }
            "leave-a-grandchild" => {
                self.write(0, "before").await;
                7
            }
            "flood" => {
                for _ in 0..argument(0).parse::<u32>().unwrap() {
                    self.write(0, vec![b'x'; 4096]).await;
                }
                0
            }
            "deaf" => self.deaf().await,
            _ => self.cat().await,
        }
    }

    /// Writes back what it reads; tells of sizes on standard error.
    async fn cat(&self) -> i32 {
        loop {
            match self.wished().await {
                Control::Stdin(bytes) => self.write(0, bytes).await,
                Control::CloseStdin => return 0,
                Control::Resize(size) => {
                    let text = format!("{}x{}\n", size.columns, size.rows);
                    self.write(1, text).await;
                }
                Control::Signal(signal) => return killed_by(signal),
            }
        }
    }

    /// Never reads: only a signal ends it.
    async fn deaf(&self) -> i32 {
        loop {
            if let Control::Signal(signal) = self.wished().await {
                return killed_by(signal);
            }
        }
    }
}

fn killed_by(signal: Signal) -> i32 {
    match signal {
        Signal::Terminate => 143,
        Signal::Kill => 137,
    }
}
