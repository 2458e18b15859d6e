//! Stands between a client and the API server, so that the API can go away and come back.

use std::{
    io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

/// Passes connections on; ends with its owner.
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    away: AtomicBool,
    ended: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

impl Relay {
    /// Listens where the caller's namespace has `address`.
    pub fn new(address: SocketAddr, to: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let shared = Arc::new(Shared::default());
        let relay = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if relay.ended.load(Ordering::SeqCst) {
                    return;
                }
                // A client that comes while the API is away is closed at once.
                if let (false, Ok(server)) = (relay.away.load(Ordering::SeqCst), TcpStream::connect(to)) {
                    relay.pass(client, server);
                }
            }
        });
        Self { address, shared }
    }

    /// Cuts every connection, and those that come from now on; or lets them pass again.
    pub fn set_away(&self, away: bool) {
        self.shared.away.store(away, Ordering::SeqCst);
        if away {
            self.shared.cut();
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.shared.cut();
        // Wakes the thread; the address may be in another namespace, where it ends with the test.
        drop(TcpStream::connect(self.address));
    }
}

impl Shared {
    fn pass(&self, client: TcpStream, server: TcpStream) {
        let mut open = self.open.lock().unwrap();
        open.extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
        for (mut from, mut to) in [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)] {
            thread::spawn(move || {
                let _ = io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Write);
            });
        }
    }

    fn cut(&self) {
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}
