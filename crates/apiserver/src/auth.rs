//! Who may talk to the server: its certificate authority, its bearer tokens, the kubeconfig text.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::{Error, random};

/// Who sent a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    /// `kubernetes-admin` or `system:serviceaccount:NAMESPACE:NAME`.
    pub name: String,
}

/// The tokens that are good, and for how long.
#[derive(Debug)]
pub(crate) struct Tokens {
    admin: String,
    minted: Mutex<HashMap<String, (User, Instant)>>,
}

impl Tokens {
    /// Only the administrator's token.
    pub fn new() -> Tokens {
        Tokens { admin: random::token(), minted: Mutex::new(HashMap::new()) }
    }

    /// The administrator's token.
    pub fn admin(&self) -> &str {
        &self.admin
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, (User, Instant)>> {
        self.minted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new token for a user; those that have run out are forgotten.
    pub fn mint(&self, user: User, lifetime: Duration) -> String {
        let (token, now) = (random::token(), Instant::now());
        let mut minted = self.lock();
        minted.retain(|_, (_, until)| *until > now);
        minted.insert(token.clone(), (user, now + lifetime));
        token
    }

    /// The user of a token that is good.
    pub fn user(&self, token: &str) -> Option<User> {
        if token == self.admin {
            return Some(User { name: "kubernetes-admin".to_owned() });
        }
        self.lock().get(token).filter(|(_, until)| *until > Instant::now()).map(|(user, _)| user.clone())
    }
}

/// The server's own certificate authority and the certificate it made for itself.
pub(crate) struct Identity {
    /// The authority's certificate, PEM.
    pub ca_pem: String,
    /// What the TLS listeners use.
    pub tls: rustls::ServerConfig,
}

impl Identity {
    /// Makes an authority and a server certificate for `addresses` and for the names of Service `kubernetes`.
    pub fn new(addresses: &[IpAddr]) -> Result<Identity, Error> {
        let mut ca = CertificateParams::default();
        ca.distinguished_name = named("podwire");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;
        let mut names: Vec<String> = [
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        ]
        .map(str::to_owned)
        .into();
        names.extend(addresses.iter().map(IpAddr::to_string));
        let mut server = CertificateParams::new(names)?;
        server.distinguished_name = named("kube-apiserver");
        server.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        server.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = server.signed_by(&key, &ca)?;
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone(), ca.der().clone()], private)?;
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Identity { ca_pem: ca.pem(), tls })
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// The text of a kubeconfig file with one cluster, one user and one context, all called `name`.
pub(crate) fn kubeconfig(name: &str, server: &str, ca_pem: &str, token: &str) -> String {
    let ca = STANDARD.encode(ca_pem);
    format!(
        "apiVersion: v1
kind: Config
clusters:
- name: {name}
  cluster:
    server: {server}
    certificate-authority-data: {ca}
users:
- name: {name}
  user:
    token: {token}
contexts:
- name: {name}
  context:
    cluster: {name}
    user: {name}
current-context: {name}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_good_until_they_run_out() {
        let tokens = Tokens::new();
        let user = User { name: "system:serviceaccount:default:default".into() };
        let good = tokens.mint(user.clone(), Duration::from_secs(60));
        let spent = tokens.mint(user.clone(), Duration::ZERO);
        assert_eq!(tokens.user(&good), Some(user));
        assert_eq!(tokens.user(&spent), None);
        assert_eq!(tokens.user(""), None);
        assert_eq!(tokens.user(tokens.admin()).unwrap().name, "kubernetes-admin");
    }
}
