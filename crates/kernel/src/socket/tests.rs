use std::{
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use super::*;

const LONG: Option<Duration> = Some(Duration::from_secs(5));

/// Waits until `file` can be read or written, and repeats `attempt` until it would not block.
fn patiently<T>(file: impl AsFd, mut attempt: impl FnMut() -> io::Result<T>) -> T {
    let poller = Poller::new().unwrap();
    poller.add(&file, 1, Interest::Edges).unwrap();
    let mut ready = Vec::new();
    loop {
        match attempt() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                poller.wait(&mut ready, LONG).unwrap();
                assert!(!ready.is_empty(), "nothing happened");
            }
            done => return done.unwrap(),
        }
    }
}

fn pair() -> (TcpStream, OwnedFd) {
    let listener = TcpListener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    let client = TcpStream::connect(("127.0.0.1", listener.port().unwrap())).unwrap();
    let (server, peer) = patiently(&listener, || listener.accept());
    assert_eq!(peer, client.local_addr().unwrap());
    client.set_read_timeout(LONG).unwrap();
    (client, server)
}

#[test]
fn bytes_and_ends_pass_through_a_pipe() {
    let ((mut client, from), (mut server, to)) = (pair(), pair());
    set_keepalive(&from, Duration::from_secs(60)).unwrap();
    let pipe = Pipe::new().unwrap();
    assert_eq!(fill(&from, &pipe).unwrap_err().kind(), ErrorKind::WouldBlock);
    client.write_all(b"hello").unwrap();
    let held = patiently(&from, || fill(&from, &pipe));
    assert_eq!((held, pour(&pipe, held, &to).unwrap()), (5, 5));
    let mut text = [0; 5];
    server.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"hello");
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(patiently(&from, || fill(&from, &pipe)), 0, "the end");
    finish_sending(&to).unwrap();
    assert_eq!(server.read(&mut text).unwrap(), 0);
    abort(from);
    assert_eq!(client.read(&mut text).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_connection_that_is_refused_says_so() {
    let port = TcpListener::bind("127.0.0.1:0".parse().unwrap()).unwrap().port().unwrap();
    let refused = begin_connect(SocketAddr::from(([127, 0, 0, 1], port)))
        .and_then(|socket| patiently(&socket, || Ok(connect_outcome(&socket))));
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
    begin_connect(SocketAddr::from(([127, 0, 0, 1], listener.port().unwrap()))).unwrap();
    let taken = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).unwrap_err();
    assert_eq!(taken.errno(), Some(libc::EADDRINUSE));
}

#[test]
fn a_poll_is_woken_and_forgets_what_it_shall() {
    let poller = Poller::new().unwrap();
    let waker = Waker::new(&poller, 7).unwrap();
    let mut ready = Vec::new();
    // An eventfd is writable from the start.
    poller.wait(&mut ready, LONG).unwrap();
    poller.wait(&mut ready, Some(Duration::ZERO)).unwrap();
    assert_eq!(ready, []);
    std::thread::scope(|scope| {
        scope.spawn(|| waker.wake());
        poller.wait(&mut ready, LONG).unwrap();
    });
    assert!(matches!(ready[..], [Ready { token: 7, readable: true, .. }]));
    let listener = TcpListener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    poller.add(&listener, 8, Interest::Reading).unwrap();
    let _client = TcpStream::connect(("127.0.0.1", listener.port().unwrap())).unwrap();
    for _ in 0..2 {
        poller.wait(&mut ready, LONG).unwrap();
        assert!(matches!(ready[..], [Ready { token: 8, readable: true, writable: false }]), "{ready:?}");
    }
    poller.modify(&listener, 8, Interest::Nothing).unwrap();
    poller.wait(&mut ready, Some(Duration::ZERO)).unwrap();
    assert_eq!(ready, []);
}

/// A client asks three times, an echo answers; the client sees the address that it asked.
fn datagrams_go_there_and_back(listen: IpAddr, asked: IpAddr) {
    let listener = UdpListener::bind(SocketAddr::new(listen, 0)).unwrap();
    let echo = UdpSocket::bind(SocketAddr::new(asked, 0)).unwrap();
    echo.set_read_timeout(LONG).unwrap();
    let flow = UdpFlow::connect(echo.local_addr().unwrap()).unwrap();
    let client = UdpSocket::bind(SocketAddr::new(asked, 0)).unwrap();
    client.set_read_timeout(LONG).unwrap();
    // Connected: an answer from any other address would not be received.
    client.connect(SocketAddr::new(asked, listener.port().unwrap())).unwrap();
    let mut batch = Datagrams::default();
    assert_eq!(batch.receive(&listener).unwrap_err().kind(), ErrorKind::WouldBlock);
    for text in ["one", "", "three"] {
        client.send(text.as_bytes()).unwrap();
    }
    assert!(!patiently(&listener, || batch.receive(&listener)));
    assert_eq!(batch.len(), 3);
    let first = batch.get(0).unwrap();
    assert_eq!((first.bytes, first.from), (&b"one"[..], client.local_addr().unwrap()));
    assert_eq!(first.to.address, asked);
    assert_eq!((batch.get(1).unwrap().bytes, batch.get(2).unwrap().bytes), (&b""[..], &b"three"[..]));
    assert!(batch.get(3).is_none() && !batch.is_empty());
    let to = first.to;
    assert_eq!(batch.forward(0..3, &flow).unwrap(), 3);
    flow.send(b"four").unwrap();
    let mut buffer = [0; 10];
    for text in ["one", "", "three", "four"] {
        let (length, from) = echo.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], text.as_bytes());
        echo.send_to(&buffer[..length], from).unwrap();
    }
    patiently(&flow, || batch.receive(&flow));
    assert_eq!(batch.len(), 4);
    assert_eq!(batch.answer(&listener, client.local_addr().unwrap(), to).unwrap(), 4);
    for text in ["one", "", "three", "four"] {
        let length = client.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], text.as_bytes());
    }
}

#[test]
fn datagrams_are_answered_from_the_address_that_was_asked() {
    // The route to 127.0.0.1 would choose 127.0.0.1.
    datagrams_go_there_and_back("0.0.0.0".parse().unwrap(), "127.0.0.9".parse().unwrap());
    datagrams_go_there_and_back("::".parse().unwrap(), "::1".parse().unwrap());
}

#[test]
fn a_flow_learns_that_its_peer_refuses() {
    let gone = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let flow = UdpFlow::connect(gone).unwrap();
    flow.send(b"?").unwrap();
    let mut batch = Datagrams::default();
    assert_eq!(batch.receive(&flow).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn the_limit_of_open_files_is_as_high_as_it_may_be() {
    let raised = raise_open_files().unwrap();
    assert!(raised >= 1024);
    assert_eq!(raise_open_files().unwrap(), raised);
}

#[test]
fn segments_are_cut_and_put_together_on_the_way() {
    let here = "127.0.0.1:0".parse().unwrap();
    let (from, to) = (TunnelSocket::bind(here).unwrap(), TunnelSocket::bind(here).unwrap());
    let plain = UdpSocket::bind("127.0.0.1:0").unwrap();
    plain.set_read_timeout(LONG).unwrap();
    let address = |port| std::net::SocketAddrV4::new([127, 0, 0, 1].into(), port);
    let parts = [b"aaaabb".as_slice(), b"bbcc"].map(io::IoSlice::new);
    let cut = |to, segment| Departure { to, segment, parts: &parts };
    let far = address(to.port().unwrap());
    let near = address(plain.local_addr().unwrap().port());
    assert_eq!(from.send(&[cut(far, 4), cut(near, 4), cut(far, 0)]).unwrap(), 3);

    let mut arrivals = Arrivals::default();
    patiently(&to, || arrivals.receive(&to));
    let (memory, datagrams) = arrivals.open();
    let datagrams: Vec<Vec<u8>> = datagrams.map(|at| memory[at].to_vec()).collect();
    assert_eq!(datagrams, [b"aaaa".as_slice(), b"bbbb", b"cc", b"aaaabbbbcc"]);
    assert_eq!(arrivals.receive(&to).unwrap_err().kind(), ErrorKind::WouldBlock);
    for expected in ["aaaa", "bbbb", "cc"] {
        let mut text = [0; 10];
        let (length, sender) = plain.recv_from(&mut text).unwrap();
        assert_eq!((&text[..length], sender.port()), (expected.as_bytes(), from.port().unwrap()));
    }

    let large = [0; 60_000];
    let message = Departure { to: far, segment: 1, parts: &[io::IoSlice::new(&large)] };
    assert!(from.send(&[message]).is_err(), "more segments than a message may have");
    let twin = TunnelSocket::bind(address(to.port().unwrap())).unwrap();
    assert_eq!(twin.port().unwrap(), to.port().unwrap());
    assert_eq!(UdpSocket::bind(("127.0.0.1", twin.port().unwrap())).unwrap_err().kind(), ErrorKind::AddrInUse);
}

#[test]
fn an_icmp_message_reaches_who_asked() {
    crate::test_support::in_new_netns(|| {
        use crate::route::{LinkChange, Route, RouteSocket};
        let mut route = RouteSocket::open().unwrap();
        let lo = route.link("lo").unwrap().unwrap().index;
        route.change_link(lo, &[LinkChange::Up(true)]).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:7").unwrap();
        socket.connect("127.0.0.2:9").unwrap();
        // "Port unreachable" about a packet of that socket.
        let mut message = vec![3, 3, 0, 0, 0, 0, 0, 0];
        message.extend([0x45, 0, 0, 29, 0, 0, 0, 0, 64, 17, 0, 0, 127, 0, 0, 1, 127, 0, 0, 2, 0, 7, 0, 9, 0, 9, 0, 0]);
        let sum: u32 = message.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        IcmpSender::open().unwrap().send([127, 0, 0, 1].into(), &message).unwrap();
        socket.set_read_timeout(LONG).unwrap();
        assert_eq!(socket.recv(&mut [0; 9]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn answers_to_several_clients_leave_together_and_each_from_where_it_was_asked() {
    let first = UdpListener::bind_shared("[::]:0".parse().unwrap()).unwrap();
    let port = first.port().unwrap();
    let second = UdpListener::bind_shared(SocketAddr::new("::".parse().unwrap(), port)).unwrap();
    let clients: Vec<(UdpSocket, &str)> = ["127.0.0.1", "127.0.0.2", "::1"]
        .iter()
        .cycle()
        .take(12)
        .map(|server| {
            let any = if server.contains(':') { "[::1]:0" } else { "127.0.0.1:0" };
            let client = UdpSocket::bind(any).unwrap();
            client.set_read_timeout(LONG).unwrap();
            // Connected: it hears only what comes from there.
            client.connect((server.parse::<IpAddr>().unwrap(), port)).unwrap();
            client.send(server.as_bytes()).unwrap();
            (client, *server)
        })
        .collect();
    let (mut batch, mut answers, mut served) = (Datagrams::with_room(64), Answers::default(), 0);
    let poller = Poller::new().unwrap();
    for (token, listener) in [(0, &first), (1, &second)] {
        poller.add(listener, token, Interest::Reading).unwrap();
    }
    let mut ready = Vec::new();
    while served < clients.len() {
        poller.wait(&mut ready, LONG).unwrap();
        assert!(!ready.is_empty(), "{served} of {} came", clients.len());
        for ready in &ready {
            let listener = [&first, &second][ready.token as usize];
            batch.receive(listener).unwrap();
            for datagram in (0..batch.len()).filter_map(|index| batch.get(index)) {
                let mut bytes = answers.buffer();
                bytes.clear();
                bytes.extend(datagram.bytes.iter().rev());
                answers.push(bytes, datagram.from, datagram.to);
            }
            served += answers.len();
            answers.send(listener).unwrap();
            assert!(answers.is_empty());
        }
    }
    let mut heard = [0; 64];
    for (client, server) in clients {
        let length = client.recv(&mut heard).unwrap();
        assert_eq!(heard[..length].iter().rev().copied().collect::<Vec<u8>>(), server.as_bytes());
    }
}
