//! The thread that keeps in the kernel what is wanted there.

use std::{
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Context;
use podwire_kernel::{
    nftables::{self, Nftables},
    route::{AddressWatch, RouteSocket},
};
use tracing::{error, info, warn};

use super::{Metrics, network, network::Network, open};
use crate::daemon::Retry;

/// How often to look whether somebody else removed something.
const LOOK_PAUSE: Duration = Duration::from_millis(300);

/// How much is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Nothing.
    Nothing,
    /// The addresses, so that they can be listened at.
    Addresses,
    /// The rules too.
    TakenOver,
}

/// The thread's owner. Without it the thread ends, and what is in the kernel stays.
#[derive(Debug)]
pub struct Keeper {
    orders: Sender<Stage>,
    thread: JoinHandle<()>,
}

impl Keeper {
    /// Makes the addresses, in the network namespace that the calling thread is in, and keeps them.
    ///
    /// # Errors
    /// The kernel refuses them.
    pub fn start(network: Network, metrics: Metrics) -> anyhow::Result<Self> {
        let (route, nftables) = open()?;
        let watch = AddressWatch::open()?;
        let mut work =
            Work { network, metrics, route, nftables, watch, stage: Stage::Addresses, retry: Retry::default() };
        work.nftables.changed_by_others(&[network::table()])?;
        work.ensure().context("setting up the addresses of -localip")?;
        let (orders, received) = mpsc::channel();
        let thread = thread::Builder::new().name("network".into()).spawn(move || work.run(&received));
        Ok(Self { orders, thread: thread.context("cannot start")? })
    }

    /// Wants this from now on.
    pub fn want(&self, stage: Stage) {
        // The thread ends only with its owner.
        let _ = self.orders.send(stage);
    }

    /// Waits until all that was wanted is done.
    pub fn end(self) {
        drop(self.orders);
        let _ = self.thread.join();
    }
}

struct Work {
    network: Network,
    metrics: Metrics,
    route: RouteSocket,
    nftables: nftables::Kernel,
    watch: AddressWatch,
    stage: Stage,
    retry: Retry,
}

impl Work {
    fn run(mut self, orders: &Receiver<Stage>) {
        loop {
            let pause = self.retry.pause().unwrap_or(LOOK_PAUSE);
            match orders.recv_timeout(pause) {
                Ok(stage) => {
                    self.stage = stage;
                    self.settle(false);
                }
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) if self.retry.pause().is_some() => self.settle(false),
                Err(RecvTimeoutError::Timeout) => match self.is_touched() {
                    Ok(true) => self.settle(true),
                    Ok(false) => {}
                    Err(error) => warn!("whether the network is as it should be is not known: {error}"),
                },
            }
        }
    }

    /// Whether somebody, perhaps we ourselves, changed addresses, or somebody else the table.
    fn is_touched(&mut self) -> podwire_kernel::Result<bool> {
        let table = self.nftables.changed_by_others(&[network::table()])?;
        Ok(self.watch.touched()? || table)
    }

    fn settle(&mut self, touched: bool) {
        match self.ensure() {
            Ok(written) => {
                self.retry.succeeded();
                match self.stage {
                    _ if touched && written => {
                        self.metrics.repairs.inc();
                        warn!("somebody else changed the interface or the rules: repaired");
                    }
                    _ if touched => {}
                    Stage::TakenOver => info!("this node's queries are answered here"),
                    Stage::Addresses => info!("this node's queries are left to the cluster's servers"),
                    Stage::Nothing => info!("the network is as it was"),
                }
            }
            Err(error) => {
                self.metrics.errors.get_or_create(&[("errortype", "network")]).inc();
                error!("{error:#}; trying again in {:?}", self.retry.failed());
            }
        }
    }

    fn ensure(&mut self) -> anyhow::Result<bool> {
        let (route, nftables) = (&mut self.route, &mut self.nftables);
        match self.stage {
            Stage::Nothing => self.network.remove(route, nftables).map(|()| false),
            Stage::Addresses => self.network.ensure(false, route, nftables),
            Stage::TakenOver => self.network.ensure(true, route, nftables),
        }
    }
}
