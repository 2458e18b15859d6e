//! Stands between a client and the API server, so that the API can go away and come back, or fall silent.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
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
    /// How often connections were silenced: those that were open before stay so, and pass nothing on.
    silenced: AtomicUsize,
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

    /// Lets nothing more pass on the connections that there are; those that come from now on work.
    pub fn silence(&self) {
        self.shared.silenced.fetch_add(1, Ordering::SeqCst);
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
    fn pass(self: &Arc<Self>, client: TcpStream, server: TcpStream) {
        let mut open = self.open.lock().unwrap();
        open.extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
        let since = self.silenced.load(Ordering::SeqCst);
        for (mut from, mut to) in [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)] {
            let shared = self.clone();
            thread::spawn(move || {
                let mut buffer = [0; 16 << 10];
                while let Ok(length @ 1..) = from.read(&mut buffer) {
                    let silent = shared.silenced.load(Ordering::SeqCst) > since;
                    if !silent && to.write_all(&buffer[..length]).is_err() {
                        break;
                    }
                }
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
