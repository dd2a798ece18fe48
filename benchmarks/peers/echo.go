// A line echo server: a goroutine per client, buffered in both directions, flushed when no line is left in the buffer.
// usage: echo [UNIX-PATH]
package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
)

func serve(conn net.Conn) {
	defer conn.Close()
	in, out := bufio.NewReaderSize(conn, 1<<16), bufio.NewWriterSize(conn, 1<<16)
	for {
		line, err := in.ReadSlice('\n')
		if _, failed := out.Write(line); failed != nil {
			return
		}
		if err == bufio.ErrBufferFull {
			continue
		}
		if in.Buffered() == 0 || err != nil {
			if out.Flush() != nil || err != nil {
				return
			}
		}
	}
}

func main() {
	network, address := "tcp", "127.0.0.1:0"
	if len(os.Args) > 1 {
		network, address = "unix", os.Args[1]
	}
	listener, err := net.Listen(network, address)
	if err != nil {
		fmt.Fprintln(os.Stderr, "echo:", err)
		os.Exit(1)
	}
	fmt.Println("Listening on", listener.Addr())
	for {
		conn, err := listener.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, "echo:", err)
			os.Exit(1)
		}
		go serve(conn)
	}
}
