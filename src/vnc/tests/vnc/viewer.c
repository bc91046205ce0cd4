/* A viewer on LibVNCClient, the library of Guacamole and others, told by lines on standard input:
 *
 *   key KEYSYM          presses and releases a key
 *   size WIDTH HEIGHT   asks for another size
 *   cut TEXT            has something in its clipboard
 *   shot                prints "WIDTH HEIGHT\n" and the pixels, red, green and blue of each
 *
 * usage: viewer PORT PASSWORD ENCODINGS BYTES-PER-PIXEL
 * It says "in" when it is, and ends with 1 if it is not let in, with 0 at the end of its input.
 */
#include <poll.h>
#include <rfb/rfbclient.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char *password;

static char *get_password(rfbClient *client) {
    (void)client;
    return strdup(password);
}

static unsigned scaled(uint32_t pixel, int shift, int max) {
    return (pixel >> shift & max) * 255 / max;
}

static void shot(rfbClient *client) {
    int width = client->width, height = client->height, bytes = client->format.bitsPerPixel / 8;
    printf("%d %d\n", width, height);
    for (int at = 0; at < width * height; at++) {
        uint32_t pixel = 0;
        memcpy(&pixel, client->frameBuffer + at * bytes, bytes);
        putchar(scaled(pixel, client->format.redShift, client->format.redMax));
        putchar(scaled(pixel, client->format.greenShift, client->format.greenMax));
        putchar(scaled(pixel, client->format.blueShift, client->format.blueMax));
    }
    fflush(stdout);
}

static void command(rfbClient *client, char *line) {
    unsigned a, b;
    line[strcspn(line, "\n")] = 0;
    if (sscanf(line, "key %u", &a) == 1) {
        SendKeyEvent(client, a, TRUE);
        SendKeyEvent(client, a, FALSE);
    } else if (sscanf(line, "down %u", &a) == 1) {
        SendKeyEvent(client, a, TRUE);
    } else if (sscanf(line, "up %u", &a) == 1) {
        SendKeyEvent(client, a, FALSE);
    } else if (sscanf(line, "size %u %u", &a, &b) == 2) {
        SendExtDesktopSize(client, a, b);
    } else if (strncmp(line, "cut ", 4) == 0) {
        SendClientCutText(client, line + 4, strlen(line + 4));
    } else if (strcmp(line, "shot") == 0) {
        shot(client);
    } else {
        exit(3);
    }
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    password = argv[2];
    int bytes = atoi(argv[4]);
    rfbClient *client = bytes == 4 ? rfbGetClient(8, 3, 4) : bytes == 2 ? rfbGetClient(5, 3, 2) : rfbGetClient(2, 3, 1);
    client->GetPassword = get_password;
    client->canHandleNewFBSize = TRUE;
    client->appData.encodingsString = argv[3];
    client->appData.shareDesktop = TRUE;
    client->appData.useRemoteCursor = FALSE;
    client->serverHost = strdup("127.0.0.1");
    client->serverPort = atoi(argv[1]);
    if (!rfbInitClient(client, NULL, NULL)) return 1;
    printf("in\n");
    fflush(stdout);
    char line[65536];
    setvbuf(stdin, NULL, _IONBF, 0);
    for (;;) {
        struct pollfd fds[2] = {{0, POLLIN, 0}, {client->sock, POLLIN, 0}};
        if (client->buffered == 0 && poll(fds, 2, -1) < 0) return 4;
        if (client->buffered || fds[1].revents) {
            if (!HandleRFBServerMessage(client)) return 5;
        }
        if (poll(fds, 1, 0) == 1) {
            if (!fgets(line, sizeof line, stdin)) return 0;
            command(client, line);
        }
    }
}
