//! A node: a network namespace and its plugins.

use std::{
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
    process,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use podwire_cni::runtime::{Attachment, NetworkConfig, Runtime};
use podwire_kernel::{
    ns::Namespace,
    route::{Route, RouteSocket},
};
use serde_json::json;

use super::Result;

/// The times of ADD and of DEL.
pub type Took = [Duration; 2];

pub struct Node {
    namespace: Namespace,
    runtime: Runtime,
    network: NetworkConfig,
}

/// A pod's network namespace.
struct Pod {
    _namespace: Namespace,
    attachment: Attachment,
}

impl Pod {
    fn new(number: usize) -> Result<Self> {
        let namespace = Namespace::new_net()?;
        let path = format!("/proc/{}/fd/{}", process::id(), namespace.as_fd().as_raw_fd());
        Ok(Self { _namespace: namespace, attachment: Attachment::new(format!("pod-{number}"), path, "eth0") })
    }
}

impl Node {
    pub fn new(bin: &Path, folder: PathBuf, masquerade: bool) -> Result<Self> {
        let plugin = json!({
            "type": "bridge",
            "bridge": "cni0",
            "isDefaultGateway": true,
            "hairpinMode": true,
            "ipMasq": masquerade,
            "ipam": { "type": "host-local", "subnet": "10.244.0.0/22", "dataDir": folder.join("networks") },
        });
        let list = json!({ "name": "bench", "cniVersion": "1.0.0", "plugins": [plugin] });
        Ok(Self {
            namespace: Namespace::new_net()?,
            runtime: Runtime { bin_dirs: vec![bin.to_owned()], cache_dir: folder.join("cache") },
            network: NetworkConfig::from_json(list.to_string().as_bytes(), "bench")?,
        })
    }

    /// One pod comes and goes.
    pub fn attach_and_detach(&self, number: usize) -> Result<Took> {
        let pod = Pod::new(number)?;
        let Self { runtime, network, .. } = self;
        self.namespace.run(|| {
            let begin = Instant::now();
            runtime.add(network, &pod.attachment)?;
            let add = begin.elapsed();
            let begin = Instant::now();
            runtime.del(network, &pod.attachment)?;
            Ok([add, begin.elapsed()])
        })
    }

    /// One pod comes, and its link goes by one request to the kernel; how long that one takes.
    pub fn attach_and_delete(&self, number: usize) -> Result<Duration> {
        let pod = Pod::new(number)?;
        let Self { runtime, network, .. } = self;
        self.namespace.run(|| {
            let result = runtime.add(network, &pod.attachment)?;
            let mut host = RouteSocket::open()?;
            let link = host.link(&result.interfaces[1].name)?.ok_or("the pod has no link")?;
            let begin = Instant::now();
            host.delete_link(link.index)?;
            let took = begin.elapsed();
            runtime.del(network, &pod.attachment)?;
            Ok(took)
        })
    }

    /// As many pods as `size` come at the same time, and go.
    pub fn attach_crowd(&self, size: usize) -> Result<Took> {
        let pods = (0..size).map(Pod::new).collect::<Result<Vec<_>>>()?;
        let Self { runtime, network, .. } = self;
        let add = self.at_once(&pods, |pod| runtime.add(network, &pod.attachment).map(drop))?;
        let del = self.at_once(&pods, |pod| runtime.del(network, &pod.attachment))?;
        Ok([add, del])
    }

    /// Does `work` for every pod on a thread of its own; from the first beginning to the last end.
    fn at_once(&self, pods: &[Pod], work: impl Fn(&Pod) -> podwire_cni::Result<()> + Sync) -> Result<Duration> {
        let (work, ready) = (&work, &Barrier::new(pods.len()));
        let one = |pod| {
            let entered = self.namespace.enter();
            ready.wait();
            let begin = Instant::now();
            entered?;
            work(pod)?;
            Ok((begin, Instant::now()))
        };
        let times = thread::scope(|scope| {
            let threads: Vec<_> = pods.iter().map(|pod| scope.spawn(move || one(pod))).collect();
            let ended = threads.into_iter().map(|thread| thread.join().map_err(|_| "a thread panicked")?);
            ended.collect::<Result<Vec<(Instant, Instant)>>>()
        })?;
        let begin = times.iter().map(|(begin, _)| *begin).min();
        let end = times.iter().map(|(_, end)| *end).max();
        Ok(end.zip(begin).map_or(Duration::ZERO, |(end, begin)| end - begin))
    }
}
