//! Ports that are open on the guest's loopback interface, for the host: what
//! `kubectl port-forward` reaches.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use casemate_protocol::stream::answer;
use tokio::{io::copy_bidirectional, net::TcpStream};

use crate::transport::Connection;

/// Joins a connection of the host with one to a port here, until both ends have
/// said all. Tells the host when nobody listens.
pub(crate) async fn join(mut host: Connection, port: u32) {
    let server = connect(port).await;
    if answer(&mut host, server.is_ok()).await.is_ok()
        && let Ok(mut server) = server
    {
        // That one side has hung up is the usual end.
        let _ = copy_bidirectional(&mut host, &mut server).await;
    }
}

/// A server may listen at one of the two loopback addresses only.
async fn connect(port: u32) -> io::Result<TcpStream> {
    let port = u16::try_from(port).map_err(|_| io::ErrorKind::InvalidInput)?;
    let addresses: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    TcpStream::connect(&addresses.map(|address| (address, port).into())[..]).await
}
