//! An API server alone, to try things against: prints the path of its kubeconfig and runs until it is interrupted.
//!
//! ```sh
//! cargo run -q -p podwire-apiserver --example serve &
//! export KUBECONFIG=…   # what it printed
//! ```

use std::{fs, io::Write, net::TcpListener, os::unix::fs::OpenOptionsExt};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = podwire_apiserver::Server::builder().build()?;
    let address = server.serve(TcpListener::bind("127.0.0.1:0")?)?;
    let path = std::env::temp_dir().join(format!("podwire-apiserver-{}.kubeconfig", std::process::id()));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    file.write_all(server.kubeconfig(address).as_bytes())?;
    println!("{}", path.display());
    tokio::signal::ctrl_c().await?;
    fs::remove_file(path)?;
    Ok(())
}
