//! Name servers of the host: what a container asks them is passed on.

use std::net::Ipv4Addr;

use casemate_protocol::{
    agent::UpdateNetworkRequest,
    names::{Way, read_ask, receive, send},
};
use tokio::net::UnixListener;
use ttrpc::Code;

use crate::guest::{Guest, limit, status, within};

const SERVER: [u8; 4] = [127, 0, 0, 11];

async fn serve(guest: &Guest, servers: &[&[u8]]) -> ttrpc::Result<()> {
    let request = UpdateNetworkRequest {
        name_servers: servers.iter().map(|one| one.to_vec()).collect(),
        ..Default::default()
    };
    guest
        .agent
        .update_network(limit(), &request)
        .await
        .map(drop)
}

/// An answer to a question for an IPv4 address: 192.0.2.7 (RFC 1035, 4.1).
fn answer(question: &[u8]) -> Vec<u8> {
    let mut answer = question.to_vec();
    // A response, with as many answers as questions.
    answer[2] |= 0x80;
    answer[7] = 1;
    let for_an_address = question[question.len() - 4..] == [0, 1, 0, 1];
    match for_an_address {
        true => answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 7]),
        false => answer[7] = 0,
    }
    answer
}

#[tokio::test]
async fn a_container_asks_a_name_server_of_the_host() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let listener = UnixListener::bind(guest.directory.path().join("names")).unwrap();
    serve(&guest, &[&SERVER]).await.unwrap();
    let host = tokio::spawn(async move {
        loop {
            let (mut question, _) = listener.accept().await.unwrap();
            let asked = read_ask(&mut question).await.unwrap();
            assert_eq!(asked, (Way::Datagram, Ipv4Addr::from(SERVER)));
            let message = receive(&mut question).await.unwrap();
            send(&mut question, &answer(&message)).await.unwrap();
        }
    });
    // A server of the container's own may have the port.
    let script = "nc -l -p 53 & nslookup web 127.0.0.11; kill $!; netstat -lnu";
    let (_, output, errors) = within(guest.run(guest.spec(script))).await;
    assert!(output.contains("127.0.0.11:53"), "{output}{errors}");
    assert!(output.contains("192.0.2.7"), "{output}{errors}");
    host.abort();
    // Nobody serves it any more.
    serve(&guest, &[]).await.unwrap();
    let script = "netstat -lnu | grep -c 127.0.0.11";
    let (_, output, _) = within(guest.run(guest.spec(script))).await;
    assert_eq!(output, "0\n");
}

#[tokio::test]
async fn only_loopback_addresses_are_served() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    for senseless in [&[10, 0, 0, 1][..], &[127, 0, 0], &[0; 16]] {
        let refused = serve(&guest, &[senseless]).await.unwrap_err();
        assert_eq!(status(refused).0, Code::INVALID_ARGUMENT);
    }
}
