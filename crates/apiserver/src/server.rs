use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, Once},
};

use ipnet::IpNet;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::{
    Error,
    auth::{self, Identity, Tokens},
    bootstrap::{self, Own},
    http::{self, Listener},
    registry::Api,
    remote::{NoNodes, NodeProxy},
    store::{Memory, Store},
};

/// Name of the cluster, the user and the context in a kubeconfig.
const CONTEXT: &str = "podwire";

/// How a [`Server`] shall be. Made by [`Server::builder`].
pub struct Builder {
    service_range: IpNet,
    second_service_range: Option<IpNet>,
    addresses: Vec<IpAddr>,
    advertise: Option<SocketAddr>,
    nodes: Arc<dyn NodeProxy>,
    store: Arc<dyn Store>,
}

impl Builder {
    /// Where Services get their addresses; 10.96.0.0/12 unless set. Its first address becomes that of Service
    /// `kubernetes`.
    pub fn service_range(mut self, range: IpNet) -> Builder {
        self.service_range = range;
        self
    }

    /// Where Services that ask for both families get their other address: a range of the family that
    /// [`Builder::service_range`] is not of. Without it they can have one only.
    pub fn second_service_range(mut self, range: IpNet) -> Builder {
        self.second_service_range = Some(range);
        self
    }

    /// An address that clients dial, for the certificate. Loopback and the first Service address are always in it.
    pub fn address(mut self, address: IpAddr) -> Builder {
        self.addresses.push(address);
        self
    }

    /// Where pods reach the server: the endpoint of Service `kubernetes`. Without it the Service has none.
    pub fn advertise(mut self, endpoint: SocketAddr) -> Builder {
        self.addresses.push(endpoint.ip());
        self.advertise = Some(endpoint);
        self
    }

    /// The way to pods' logs and commands.
    pub fn nodes(mut self, nodes: Arc<dyn NodeProxy>) -> Builder {
        self.nodes = nodes;
        self
    }

    /// Where objects are kept; in memory unless set.
    pub fn store(mut self, store: Arc<dyn Store>) -> Builder {
        self.store = store;
        self
    }

    /// Makes the certificates and the objects that every cluster has.
    ///
    /// # Errors
    /// [`Error`] when a certificate cannot be made, the service range is too small, or both are of one family.
    pub fn build(self) -> Result<Server, Error> {
        let Some(first) = self.service_range.hosts().nth(usize::from(self.service_range.prefix_len() >= 127)) else {
            return Err(Error::ServiceRange(self.service_range));
        };
        let second = self.second_service_range;
        if let Some(second) = second.filter(|range| range.addr().is_ipv4() == first.is_ipv4()) {
            return Err(Error::ServiceRanges(self.service_range, second));
        }
        let mut addresses = self.addresses;
        addresses.extend([IpAddr::V4(Ipv4Addr::LOCALHOST), first]);
        let identity = Identity::new(&addresses)?;
        let api = Arc::new(Api {
            store: self.store,
            tokens: Tokens::new(),
            nodes: self.nodes,
            service_ranges: [Some(self.service_range), second].into_iter().flatten().collect(),
            allocating: Mutex::new(()),
        });
        let own = Own { address: first, endpoint: self.advertise };
        bootstrap::populate(&api, own)?;
        Ok(Server {
            api,
            ca_pem: identity.ca_pem,
            tls: TlsAcceptor::from(Arc::new(identity.tls)),
            stop: watch::Sender::new(false),
            own,
            keeping: Once::new(),
        })
    }
}

/// An API server. It answers on every socket given to [`Server::serve`] until it is stopped or dropped.
pub struct Server {
    api: Arc<Api>,
    ca_pem: String,
    tls: TlsAcceptor,
    stop: watch::Sender<bool>,
    own: Own,
    keeping: Once,
}

impl Server {
    /// A server that keeps its objects in memory and reaches no nodes, unless told otherwise.
    pub fn builder() -> Builder {
        Builder {
            service_range: IpNet::from(ipnet::Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 12)),
            second_service_range: None,
            addresses: Vec::new(),
            advertise: None,
            nodes: Arc::new(NoNodes),
            store: Arc::new(Memory::default()),
        }
    }

    /// Answers on a listening socket from now on. May be called for several; must be called inside a tokio runtime.
    /// Returns the socket's address.
    ///
    /// # Errors
    /// [`Error::Listen`] when the socket cannot be used.
    pub fn serve(&self, socket: std::net::TcpListener) -> Result<SocketAddr, Error> {
        socket.set_nonblocking(true).map_err(Error::Listen)?;
        let address = socket.local_addr().map_err(Error::Listen)?;
        let socket = tokio::net::TcpListener::from_std(socket).map_err(Error::Listen)?;
        let listener = Listener { socket, tls: self.tls.clone() };
        tokio::spawn(http::serve(listener, self.api.clone(), self.stop.subscribe()));
        self.keeping.call_once(|| {
            tokio::spawn(bootstrap::keep(self.api.clone(), self.own, self.stop.subscribe()));
        });
        Ok(address)
    }

    /// The text of a kubeconfig for the administrator, with the server at `address`.
    pub fn kubeconfig(&self, address: SocketAddr) -> String {
        auth::kubeconfig(CONTEXT, &format!("https://{address}"), &self.ca_pem, self.api.tokens.admin())
    }

    /// The certificate authority, PEM: `ca.crt` of pods.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// A bearer token that may do everything and never runs out.
    pub fn admin_token(&self) -> &str {
        self.api.tokens.admin()
    }

    /// Stops accepting, ends watches, and lets running requests finish.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("service_ranges", &self.api.service_ranges).finish_non_exhaustive()
    }
}
