//! The Kubernetes API of a lab and the controllers behind it, inside the supervisor.

use std::{net::Ipv4Addr, net::TcpListener, sync::Arc};

use podwire_apiserver::{
    Server,
    controllers::{self, Config, PodRange},
};
use podwire_k8s::{
    Client,
    k8s_openapi::api::core::v1::Node,
    kube::{Api, api::PostParams},
};
use tokio::task::JoinHandle;

use crate::{
    error::{Context, Error, Result},
    kubelet::{node, remote::Nodes},
    state::{self, Directory},
    topology::{API_PORT, GATEWAY, Machine, NODE_MASK, NODE_MASK_V6, Options, POD_CIDR_V6, SERVICE_CIDR_V6},
};

/// A running control plane. It ends when it is dropped.
pub struct ControlPlane {
    /// The API server's URL on the host's loopback.
    pub url: String,
    /// The kubeconfig for the machines.
    pub underlay_kubeconfig: String,
    /// A client with the user's kubeconfig.
    pub client: Client,
    /// Answers as long as it is there.
    _server: Server,
    controllers: JoinHandle<()>,
}

impl ControlPlane {
    /// Starts the API server on a free port of the host's loopback and on `underlay`, a socket on the underlay, then the
    /// controllers; writes the user's kubeconfig.
    ///
    /// # Errors
    /// A socket or file could not be had, or a certificate not be made.
    pub async fn start(options: &Options, directory: &Directory, underlay: TcpListener) -> Result<Self> {
        let failed = |error: &dyn std::error::Error| Error::Api {
            tried: "start the API server".to_owned(),
            reason: error.to_string(),
        };
        let advertised = (GATEWAY, API_PORT).into();
        let nodes = Arc::new(Nodes::new(directory.path()));
        let server = Server::builder().service_range(options.service_cidr.into()).advertise(advertised).nodes(nodes);
        let server = if options.dual_stack { server.second_service_range(SERVICE_CIDR_V6.into()) } else { server };
        let server = server.build().map_err(|error| failed(&error))?;
        let loopback = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).trying(|| "listen on the host's loopback")?;
        let address = server.serve(loopback).map_err(|error| failed(&error))?;
        server.serve(underlay).map_err(|error| failed(&error))?;
        state::write_private(&directory.kubeconfig(), server.kubeconfig(address).as_bytes())?;
        let client = Client::from_kubeconfig(Some(&directory.kubeconfig())).await.map_err(|error| failed(&error))?;
        let pods = PodRange { range: options.pod_cidr.into(), node_mask: NODE_MASK };
        let pods_v6 = PodRange { range: POD_CIDR_V6.into(), node_mask: NODE_MASK_V6 };
        let config = Config {
            pod_ranges: if options.dual_stack { vec![pods, pods_v6] } else { vec![pods] },
            root_ca: Some(server.ca_pem().to_owned()),
        };
        Ok(Self {
            url: format!("https://{address}"),
            underlay_kubeconfig: server.kubeconfig(advertised),
            controllers: tokio::spawn(controllers::run(client.clone(), config)),
            client,
            _server: server,
        })
    }

    /// Makes the Node objects, one after the other: pod ranges are given out in this order, whichever kubelet is first.
    ///
    /// # Errors
    /// The API refused one.
    pub async fn register(&self, machines: &[Machine]) -> Result<()> {
        let nodes = Api::<Node>::all(self.client.kube());
        for machine in machines {
            nodes.create(&PostParams::default(), &node::bare(&machine.name)).await.map_err(|error| Error::Api {
                tried: format!("create Node {}", machine.name),
                reason: error.to_string(),
            })?;
        }
        Ok(())
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.controllers.abort();
    }
}
