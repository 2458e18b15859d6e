//! DNS over TLS (RFC 7858): whom to trust, and who we are.

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio_rustls::TlsConnector;

use crate::corefile::{CorefileError, Directive, Word};

/// The system's certification authorities where no file is named.
const SYSTEM_CAS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// A connector for `tls`, `tls CA`, `tls CERT KEY` or `tls CERT KEY CA`; `at` is where to complain without any of them.
pub(super) fn connector(option: Option<&Directive>, at: &Word) -> Result<TlsConnector, CorefileError> {
    let words = option.map_or(Ok(&[][..]), |option| option.plain(0, 3))?;
    let (identity, ca) = match words {
        [] => (None, None),
        [ca] => (None, Some(ca)),
        [certificate, key] => (Some((certificate, key)), None),
        [certificate, key, ca, ..] => (Some((certificate, key)), Some(ca)),
    };
    let system = Word { text: SYSTEM_CAS.to_owned(), at: option.map_or(at, |option| &option.name).at };
    let ca = ca.unwrap_or(&system);
    let mut roots = RootCertStore::empty();
    // A bundle may hold certificates that are of no use here.
    let (added, _) = roots.add_parsable_certificates(certificates(ca)?);
    if added == 0 {
        return Err(ca.error(format!("tls: no usable certificate in {}", ca.text)));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let wrong = |word: &Word, error: &dyn std::fmt::Display| word.error(format!("tls: {}: {error}", word.text));
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| wrong(ca, &error))?.with_root_certificates(roots);
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = certificates(certificate)?;
            let private = PrivateKeyDer::from_pem_file(&key.text).map_err(|error| wrong(key, &error))?;
            builder.with_client_auth_cert(chain, private).map_err(|error| wrong(certificate, &error))?
        }
    };
    Ok(TlsConnector::from(Arc::new(config)))
}

fn certificates(file: &Word) -> Result<Vec<CertificateDer<'static>>, CorefileError> {
    let read = CertificateDer::pem_file_iter(&file.text).and_then(Iterator::collect);
    read.map_err(|error| file.error(format!("tls: cannot read certificates from {}: {error}", file.text)))
}
