use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use kube::{
    Config,
    config::{KubeConfigOptions, Kubeconfig},
};

/// How long a connection may take to be made. Short, because a connection to a Service address that began before the proxy
/// knew the Service stays lost (its flow is in conntrack, untranslated), while the next one will do.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Why no client could be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not in a pod, or the pod has no service account token.
    #[error("cannot use the pod's service account to reach the Kubernetes API: {0}; outside a pod, name a kubeconfig")]
    InCluster(#[source] Box<kube::config::InClusterError>),
    /// The kubeconfig is missing or malformed.
    #[error("cannot use kubeconfig {path}: {source}")]
    Kubeconfig {
        /// The file, or `$KUBECONFIG or ~/.kube/config` where none was named.
        path: String,
        /// What is wrong with it.
        #[source]
        source: Box<kube::config::KubeconfigError>,
    },
    /// The API server's address is no URL.
    #[error("cannot use {url:?} as the URL of the Kubernetes API: {source}")]
    Server {
        /// What was given.
        url: String,
        /// What is wrong with it.
        #[source]
        source: http::uri::InvalidUri,
    },
    /// TLS or authentication could not be set up.
    #[error("cannot set up the connection to the Kubernetes API: {0}")]
    Connection(#[source] Box<kube::Error>),
}

/// A connection to a Kubernetes API server. Cheap to clone; connects on first use.
#[derive(Clone)]
pub struct Client {
    kube: kube::Client,
}

impl Client {
    /// Connects as the pod's service account: `KUBERNETES_SERVICE_HOST`, `KUBERNETES_SERVICE_PORT` and the files under
    /// `/var/run/secrets/kubernetes.io/serviceaccount`.
    pub fn in_cluster() -> Result<Self, Error> {
        let config = Config::incluster_env().map_err(|e| Error::InCluster(Box::new(e)))?;
        Self::from_config(config)
    }

    /// Connects as the current context of the kubeconfig at `path`, or of `$KUBECONFIG`, or of `~/.kube/config`.
    pub async fn from_kubeconfig(path: Option<&Path>) -> Result<Self, Error> {
        Self::from_config(Self::read_kubeconfig(path).await?)
    }

    async fn read_kubeconfig(path: Option<&Path>) -> Result<Config, Error> {
        let failed = |source| Error::Kubeconfig {
            path: path.map_or_else(|| "$KUBECONFIG or ~/.kube/config".into(), |p| p.display().to_string()),
            source: Box::new(source),
        };
        let kubeconfig = match path {
            Some(path) => Kubeconfig::read_from(path).map_err(failed)?,
            None => Kubeconfig::read().map_err(failed)?,
        };
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(failed)
    }

    /// Connects as the kubeconfig at `path` says where one is given, otherwise as the pod's service account.
    pub async fn from_kubeconfig_or_cluster(path: Option<PathBuf>) -> Result<Self, Error> {
        match path {
            Some(path) => Self::from_kubeconfig(Some(&path)).await,
            None => Self::in_cluster(),
        }
    }

    /// As [`Client::from_kubeconfig_or_cluster`], but the API server is at `server` where that is given (`--master`).
    pub async fn connect(kubeconfig: Option<&Path>, server: Option<&str>) -> Result<Self, Error> {
        let Some(server) = server.filter(|server| !server.is_empty()) else {
            return Self::from_kubeconfig_or_cluster(kubeconfig.map(Path::to_owned)).await;
        };
        let failed = |source| Error::Server { url: server.to_owned(), source };
        let url = server.parse::<http::Uri>().map_err(failed)?;
        let mut config = match kubeconfig {
            Some(path) => Self::read_kubeconfig(Some(path)).await?,
            None => Config::new(url.clone()),
        };
        config.cluster_url = url;
        Self::from_config(config)
    }

    /// The client of the `kube` crate, for typed requests.
    pub fn kube(&self) -> kube::Client {
        self.kube.clone()
    }

    fn from_config(mut config: Config) -> Result<Self, Error> {
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        let kube = kube::Client::try_from(config).map_err(|e| Error::Connection(Box::new(e)))?;
        Ok(Self { kube })
    }
}
