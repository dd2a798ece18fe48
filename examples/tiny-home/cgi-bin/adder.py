#!/usr/bin/env python3
"""A CGI program that adds two numbers: adder.c of CS:APP section 11.5.

The numbers are in QUERY_STRING: "15000&213". For other input the book's program crashes or reads it as 0; this one
returns an error text.
"""

import os
import sys


def main():
    # Extract the two arguments
    try:
        arg1, arg2 = os.environ.get("QUERY_STRING", "").split("&")
        n1, n2 = int(arg1), int(arg2)
        answer = f"The answer is: {n1} + {n2} = {n1 + n2}"
    except ValueError:
        answer = "This program needs two numbers, for example ?15000&amp;213"

    # Make the response body
    content = "Welcome to add.com: "
    content += "THE Internet addition portal.\r\n<p>"
    content += f"{answer}\r\n<p>"
    content += "Thanks for visiting!\r\n"

    # Generate the HTTP response
    sys.stdout.write("Connection: close\r\n")
    sys.stdout.write(f"Content-length: {len(content)}\r\n")
    sys.stdout.write("Content-type: text/html\r\n\r\n")
    sys.stdout.write(content)


if __name__ == "__main__":
    main()
