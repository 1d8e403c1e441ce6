"""Requests to the HTTP interface as they are typed into a shell: in the help of the command, and on the server's page.

Pictures are sent as files: an argument of a command holds 128 KiB, less than a photograph.
"""

from string import Template


_REQUESTS = Template("""\
# keep a picture, and caption regions of it
ID=$$(curl -s $address/v1/images --data-binary @street.jpg | jq -r .image_id)
curl -s $address/v1/caption -H 'Content-Type: application/json' \\
    -d '{"image_id": "'$$ID'", "regions": [{"box": [40, 60, 210, 300]}, {"points": [[320, 180]]}]}'
# everything in it
curl -s $address/v1/anything -H 'Content-Type: application/json' -d '{"image_id": "'$$ID'"}'
# in one request, from a file of any size
base64 -w0 street.jpg | jq -Rc '{image: ., regions: [{box: [40, 60, 210, 300]}]}' |
    curl -s $address/v1/caption -H 'Content-Type: application/json' --data-binary @-
""")


def requests(address: str) -> str:
    """Returns the examples for a server at an address."""
    return _REQUESTS.substitute(address=address)
