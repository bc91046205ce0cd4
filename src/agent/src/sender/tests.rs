use std::io::Read;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use super::*;

async fn listener(address: &str) -> (UdpSocket, TcpListener, Sender) {
    let udp = UdpSocket::bind((address, 0)).await.unwrap();
    let port = udp.local_addr().unwrap().port();
    let tcp = TcpListener::bind((address, port)).await.unwrap();
    let address = address.to_owned();
    (udp, tcp, Sender { host: 7, address, port, key: None, last: 0, patience: PATIENCE })
}

fn text(message: &str) -> String {
    let bytes = STANDARD.decode(message.rsplit(' ').next().unwrap()).unwrap();
    let mut text = String::new();
    flate2::read::ZlibDecoder::new(bytes.as_slice()).read_to_string(&mut text).unwrap();
    text
}

async fn datagram(udp: &UdpSocket) -> String {
    let mut bytes = vec![0; 70_000];
    let n = udp.recv(&mut bytes).await.unwrap();
    String::from_utf8(bytes[..n].to_vec()).unwrap()
}

async fn connection(tcp: &TcpListener) -> String {
    let mut all = String::new();
    tcp.accept().await.unwrap().0.read_to_string(&mut all).await.unwrap();
    all
}

#[tokio::test]
async fn states_go_by_tcp_and_the_rest_in_datagrams_in_both_families() {
    for address in ["127.0.0.1", "::1"] {
        let (udp, tcp, mut sender) = listener(address).await;
        sender.send(MessageKind::BeaconHost, &Ok("x".into())).await.unwrap();
        let beacon = datagram(&udp).await;
        assert!(beacon.starts_with("BEACON_HOST SUCCESS 7 ") && text(&beacon) == "x", "{beacon}");
        let text_of_states = Ok("s".into());
        let sent = sender.send(MessageKind::StateVm, &text_of_states);
        let (sent, got) = tokio::join!(sent, connection(&tcp));
        sent.unwrap();
        assert!(got.starts_with("STATE_VM SUCCESS 7 ") && text(&got) == "s", "{got}");
        let why = Err(Error::new(ErrorKind::Host, "no /proc"));
        sender.send(MessageKind::MonitorHost, &why).await.unwrap();
        let failure = datagram(&udp).await;
        assert!(failure.starts_with("MONITOR_HOST FAILURE 7 ") && text(&failure) == "no /proc");
    }
}

#[tokio::test]
async fn what_nobody_takes_is_known_by_tcp() {
    let (_udp, tcp, mut sender) = listener("127.0.0.1").await;
    drop(tcp);
    let error = sender.send(MessageKind::StateVm, &Ok("s".into())).await.unwrap_err().to_string();
    assert!(error.contains("127.0.0.1 port "), "{error}");
    sender.send(MessageKind::StateVm, &Ok(String::new())).await.unwrap();
}

#[tokio::test]
async fn long_texts_are_cut_between_vms() {
    let (udp, _tcp, mut sender) = listener("127.0.0.1").await;
    // Random enough not to be compressed below two datagrams.
    let mut noise = vec![0; 120_000];
    random(&mut noise).unwrap();
    let lines = |part: &[u8]| format!("{}\n", STANDARD.encode(part));
    let texts: Vec<String> = noise.chunks(100).map(lines).collect();
    let reader = async {
        let (mut got, mut count) = (String::new(), 0);
        while got.len() < texts.concat().len() {
            let message = datagram(&udp).await;
            assert!(message.len() <= MAX_DATAGRAM);
            got.push_str(&text(&message));
            count += 1;
        }
        (got, count)
    };
    let (sent, (got, count)) =
        tokio::join!(sender.send_each(MessageKind::MonitorVm, &texts), reader);
    sent.unwrap();
    assert_eq!(got, texts.concat());
    assert!(count > 2, "{count}");
}

#[tokio::test]
async fn a_clock_that_is_put_back_does_not_make_messages_old() {
    let (udp, _tcp, mut sender) = listener("127.0.0.1").await;
    sender.last = u64::from(u32::MAX);
    sender.send(MessageKind::BeaconHost, &Ok("x".into())).await.unwrap();
    assert!(datagram(&udp).await.starts_with("BEACON_HOST SUCCESS 7 4294967295 "));
}

#[test]
fn a_resolver_that_does_not_answer_is_not_waited_for_for_ever() {
    let (open, gate) = std::sync::mpsc::channel::<()>();
    // Names are looked up on threads for what blocks: the only one is taken.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build()
        .unwrap();
    runtime.spawn_blocking(move || gate.recv());
    runtime.block_on(async {
        let (_udp, _tcp, mut sender) = listener("127.0.0.1").await;
        sender.address = "localhost".into();
        sender.patience = Duration::from_millis(20);
        for kind in [MessageKind::StateVm, MessageKind::BeaconHost] {
            let error = sender.send(kind, &Ok("x".into())).await.unwrap_err().to_string();
            assert!(error.contains("timed out"), "{error}");
        }
    });
    drop(open);
}
