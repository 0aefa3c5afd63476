       IDENTIFICATION DIVISION.
       PROGRAM-ID. PAYROLL.
       ENVIRONMENT DIVISION.
       INPUT-OUTPUT SECTION.
       FILE-CONTROL.
           SELECT TIME-CARDS ASSIGN TO "TIMECARD"
               ORGANIZATION IS LINE SEQUENTIAL.
       DATA DIVISION.
       FILE SECTION.
       FD  TIME-CARDS.
       01  TIME-CARD.
           05  TC-CLOCK-NUMBER     PIC 9(6).
           05  TC-HOURS            PIC 99V99.
           05  TC-RATE             PIC 999V99.
           05  TC-PENSION-FLAG     PIC X.
       WORKING-STORAGE SECTION.
       01  WS-END-OF-CARDS         PIC X        VALUE "N".
       01  WS-OVERTIME-HOURS       PIC 99V99    VALUE ZERO.
       01  WS-GROSS                PIC 9(5)V99  VALUE ZERO.
       01  WS-PENSION              PIC 9(5)V99  VALUE ZERO.
       01  WS-NET                  PIC 9(5)V99  VALUE ZERO.
       PROCEDURE DIVISION.
       MAIN-LINE.
           OPEN INPUT TIME-CARDS.
           PERFORM READ-CARD.
           PERFORM PAY-ONE-WORKER UNTIL WS-END-OF-CARDS = "Y".
           CLOSE TIME-CARDS.
           STOP RUN.

       READ-CARD.
           READ TIME-CARDS
               AT END MOVE "Y" TO WS-END-OF-CARDS
           END-READ.

       PAY-ONE-WORKER.
           PERFORM COMPUTE-OVERTIME.
           PERFORM DEDUCT-PENSION.
           PERFORM PRINT-PAYSLIP.
           PERFORM READ-CARD.

       COMPUTE-OVERTIME.
      * Hours above 37.5 are overtime, paid at one and a half times
      * the rate, as agreed with the union in 1983.
           MOVE ZERO TO WS-OVERTIME-HOURS.
           IF TC-HOURS > 37.5
               SUBTRACT 37.5 FROM TC-HOURS GIVING WS-OVERTIME-HOURS
           END-IF.
           COMPUTE WS-GROSS ROUNDED =
               (TC-HOURS + WS-OVERTIME-HOURS * 0.5) * TC-RATE.

       DEDUCT-PENSION.
      * The pension scheme takes six per cent of gross pay from its
      * members. Apprentices (flag "A") pay nothing.
           MOVE ZERO TO WS-PENSION.
           IF TC-PENSION-FLAG = "M"
               COMPUTE WS-PENSION ROUNDED = WS-GROSS * 0.06
           END-IF.
           SUBTRACT WS-PENSION FROM WS-GROSS GIVING WS-NET.

       PRINT-PAYSLIP.
           DISPLAY "CLOCK " TC-CLOCK-NUMBER
               " GROSS " WS-GROSS " NET " WS-NET.
