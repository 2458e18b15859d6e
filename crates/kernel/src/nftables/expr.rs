//! The attributes of each expression (`NFTA_*` of its kind).

use podwire_model::Family;

use super::{
    Ct, Expr, Header, Is, Meta, Reg, RejectWith, Side, Verdict,
    encode::{Writer, nfproto, push_verdict},
};

const VERDICT_REGISTER: u32 = 0;

/// The kernel's number of a register (`NFT_REG32_00` is 8).
const fn number(register: Reg) -> u32 {
    8 + register.0 as u32
}

/// Writes the attributes of `expr`.
pub(super) fn push_expr(w: &mut Writer, expr: &Expr) {
    match expr {
        Expr::Payload { header, offset, length, to } => {
            w.be32(1, number(*to));
            w.be32(
                2,
                match header {
                    Header::Network => 1,
                    Header::Transport => 2,
                },
            );
            w.be32(3, *offset);
            w.be32(4, *length);
        }
        Expr::Meta { key, to } => {
            w.be32(2, meta(*key));
            w.be32(1, number(*to));
        }
        Expr::SetMark { from } => {
            w.be32(2, meta(Meta::Mark));
            w.be32(3, number(*from));
        }
        Expr::Ct { key, to } => {
            w.be32(1, number(*to));
            w.be32(
                2,
                match key {
                    Ct::State => 0,
                    Ct::Status => 2,
                },
            );
        }
        Expr::FibType { side, to } => push_fib(w, *side, *to),
        Expr::Bitwise { from, to, mask, xor } => {
            w.be32(1, number(*from));
            w.be32(2, number(*to));
            w.be32(3, mask.as_bytes().len() as u32);
            w.value(4, mask);
            w.value(5, xor);
        }
        Expr::Cmp { is, register, value } => {
            w.be32(1, number(*register));
            w.be32(
                2,
                match is {
                    Is::Equal => 0,
                    Is::Not => 1,
                },
            );
            w.value(3, value);
        }
        Expr::Random { modulus, offset, to } => push_random(w, *modulus, *offset, *to),
        Expr::Hash { from, length, modulus, offset, to } => {
            w.be32(1, number(*from));
            w.be32(2, number(*to));
            w.be32(3, *length);
            w.be32(4, *modulus);
            // A fixed seed: the same client gets the same number on every node and after every restart.
            w.be32(5, 0);
            w.be32(6, *offset);
            w.be32(7, 0);
        }
        Expr::InSet { .. } | Expr::Map { .. } | Expr::VerdictMap { .. } => push_lookup(w, expr),
        Expr::Verdict(verdict) => push_immediate(w, verdict),
        Expr::Dnat { family, address, port } => push_dnat(w, *family, *address, *port),
        Expr::Masquerade { flags: 0 } | Expr::Counter => {}
        Expr::Masquerade { flags } => w.be32(1, *flags),
        Expr::Reject(with) => push_reject(w, *with),
    }
}

const fn meta(key: Meta) -> u32 {
    match key {
        Meta::Mark => 3,
        Meta::InputName => 6,
        Meta::OutputName => 7,
        Meta::NfProto => 15,
        Meta::L4Proto => 16,
    }
}

fn push_fib(w: &mut Writer, side: Side, to: Reg) {
    const RESULT_ADDRESS_TYPE: u32 = 3;
    w.be32(1, number(to));
    w.be32(2, RESULT_ADDRESS_TYPE);
    w.be32(
        3,
        match side {
            Side::Source => 1,
            Side::Destination => 2,
        },
    );
}

fn push_random(w: &mut Writer, modulus: u32, offset: u32, to: Reg) {
    const RANDOM: u32 = 1;
    w.be32(1, number(to));
    w.be32(2, modulus);
    w.be32(3, RANDOM);
    w.be32(4, offset);
}

fn push_lookup(w: &mut Writer, expr: &Expr) {
    const INVERT: u32 = 1;
    let (set, key, to, is) = match expr {
        Expr::InSet { set, key, is } => (set, key, None, *is),
        Expr::Map { map, key, to } => (map, key, Some(number(*to)), Is::Equal),
        Expr::VerdictMap { map, key } => (map, key, Some(VERDICT_REGISTER), Is::Equal),
        _ => return,
    };
    w.string(1, set);
    w.be32(2, number(*key));
    if let Some(to) = to {
        w.be32(3, to);
    }
    if is == Is::Not {
        w.be32(5, INVERT);
    }
}

fn push_immediate(w: &mut Writer, verdict: &Verdict) {
    w.be32(1, VERDICT_REGISTER);
    w.nest(2, |w| push_verdict(w, verdict));
}

fn push_dnat(w: &mut Writer, family: Family, address: Reg, port: Reg) {
    const DESTINATION: u32 = 1;
    w.be32(1, DESTINATION);
    w.be32(2, nfproto(family));
    w.be32(3, number(address));
    w.be32(5, number(port));
}

fn push_reject(w: &mut Writer, with: RejectWith) {
    const ICMP: u32 = 0;
    const TCP_RESET: u32 = 1;
    // Codes of ICMP (RFC 792) and ICMPv6 (RFC 4443) for "port unreachable".
    let (kind, code) = match with {
        RejectWith::PortUnreachable(Family::V4) => (ICMP, 3),
        RejectWith::PortUnreachable(Family::V6) => (ICMP, 4),
        RejectWith::TcpReset => (TCP_RESET, 0),
    };
    w.be32(1, kind);
    w.bytes(2, &[code]);
}
