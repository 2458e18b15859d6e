use std::{
    io::{ErrorKind, IoSlice},
    net::UdpSocket,
    time::{Duration, Instant},
};

use proptest::prelude::*;

use super::*;
use crate::{
    route::{Address, LinkChange, Route, RouteSocket},
    test_support::in_new_netns,
};

/// `tun0` with 10.1.0.1/24 and MTU 1500, and its index; up.
fn device(attach: impl FnOnce()) -> (RouteSocket, u32) {
    let mut route = RouteSocket::open().unwrap();
    create("tun0").unwrap();
    attach();
    let index = route.link("tun0").unwrap().unwrap().index;
    route.add_address(&Address::new(index, "10.1.0.1/24".parse::<podwire_model::IpNet>().unwrap())).unwrap();
    route.change_link(index, &[LinkChange::Up(true)]).unwrap();
    (route, index)
}

/// The next IPv4 packet that the kernel sends.
fn next(queue: &Queue, packet: &mut [u8]) -> (usize, Offload) {
    let start = Instant::now();
    loop {
        assert!(start.elapsed() < Duration::from_secs(5), "nothing came");
        match queue.receive(packet) {
            Ok((length, offload)) if packet[0] >> 4 == 4 => return (length, offload),
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
}

#[test]
fn a_packet_goes_out_unfinished_and_one_in_parts_comes_in() {
    in_new_netns(|| {
        let mut queue = None;
        // A device that was up before needs a moment to notice that it has a carrier.
        device(|| queue = Queue::attach("tun0").ok());
        let queue = queue.unwrap();
        let socket = UdpSocket::bind("10.1.0.1:7").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.send_to(b"hello", "10.1.0.2:9").unwrap();
        let mut packet = [0; 1500];
        let (length, offload) = next(&queue, &mut packet);
        assert_eq!((length, &packet[28..33]), (33, &b"hello"[..]));
        assert_eq!(offload, Offload { checksum: Some(Checksum { start: 20, offset: 6 }), segments: None });

        // The answer: addresses and ports change places, which leaves the sums as they are.
        let mut answer = packet;
        for (to, from) in [(12, 16), (16, 12)] {
            answer[to..to + 4].copy_from_slice(&packet[from..from + 4]);
        }
        for (to, from) in [(20, 22), (22, 20)] {
            answer[to..to + 2].copy_from_slice(&packet[from..from + 2]);
        }
        queue.send(offload, &[IoSlice::new(&answer[..28]), IoSlice::new(b"HE"), IoSlice::new(b"LLO")]).unwrap();
        let mut text = [0; 9];
        assert_eq!(socket.recv_from(&mut text).unwrap(), (5, "10.1.0.2:9".parse().unwrap()));
        assert_eq!(&text[..5], b"HELLO");
        let error = queue.send(Offload::default(), &[IoSlice::new(b"?")]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    });
}

/// Whether `tun0`, which is up, soon is running or not: the kernel may tell of its carrier a second late.
fn comes_to(route: &mut RouteSocket, running: bool) -> bool {
    let patience = Instant::now() + Duration::from_secs(10);
    loop {
        let link = route.link("tun0").unwrap().unwrap();
        if !link.up || link.running == running || Instant::now() > patience {
            return link.up && link.running == running;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_device_stays_and_takes_as_many_queues_as_are_attached() {
    in_new_netns(|| {
        let error = Queue::attach("tun0").unwrap_err();
        assert_eq!(error.to_string(), "cannot attach to tun tun0: No such device (os error 19)");
        let (mut route, index) = device(|| ());
        assert!(create("tun0").unwrap_err().already_exists());
        assert!(create("lo").unwrap_err().already_exists());
        assert_eq!(Queue::attach("lo").unwrap_err().errno(), Some(libc::EINVAL));
        assert!(matches!(create("tun%d"), Err(crate::Error::Invalid { .. })));
        assert!(comes_to(&mut route, false));
        let queues = [Queue::attach("tun0").unwrap(), Queue::attach("tun0").unwrap()];
        assert!(comes_to(&mut route, true));
        drop(queues);
        assert!(comes_to(&mut route, false));

        let queue = Queue::attach("tun0").unwrap();
        route.delete_link(index).unwrap();
        assert_eq!(queue.receive(&mut [0; 100]).unwrap_err().raw_os_error(), Some(libc::EBADFD));
    });
}

proptest! {
    #[test]
    fn any_header_is_read_or_refused_and_comes_back(bytes: [u8; Offload::LENGTH]) {
        if let Some(offload) = Offload::from_bytes(bytes) {
            prop_assert_eq!(Offload::from_bytes(offload.to_bytes()), Some(offload));
        }
    }
}
